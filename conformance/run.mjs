// Runs the public HTTP cache tests (npm package http-cache-tests) against a built binary, and
// compares what comes out, by test id, with expected.json.
//
//   node run.mjs --larder PATH [--profile NAME] [--id ID] [--record] [--peers]
//
// A profile is a configuration of Larder, and what is done to it between a test's requests.

import { execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import https from 'node:https'
import { tmpdir } from 'node:os'
import path from 'node:path'
import process from 'node:process'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'

const here = path.dirname(fileURLToPath(import.meta.url))
const pack = path.join(here, 'node_modules', 'http-cache-tests')
const expectedFile = path.join(here, 'expected.json')

const rfc = ['cache.set_cookie=rfc']
const profiles = {
  defaults: { about: 'as shipped', set: [] },
  rfc: { about: "the RFC's own: cookies are stored like anything else", set: rfc },
  durable: {
    about: 'nothing fits in memory, every hit comes through the durable tier',
    set: [...rfc, 'memory.capacity=0', 'durable.min_lifetime=0s']
  },
  restart: {
    about: 'killed and started again between the requests of each test',
    set: [...rfc, 'durable.min_lifetime=0s'],
    restarts: true
  },
  surrogate: {
    about: 'Surrogate-Control is listened to',
    set: [...rfc, 'cache.surrogate_control=true'],
    suites: ['surrogate-control', 'cc-freshness']
  },
  tls: { about: "the RFC's own, by HTTP/1.1 over TLS", set: rfc, over: 'tls' },
  http2: { about: "the RFC's own, by HTTP/2 over TLS", set: rfc, over: 'http2' },
  origins: {
    about: 'three addresses of the origin, asked in turn',
    set: [...rfc, 'upstream.balance=round_robin'],
    addresses: ['127.0.0.1', '127.0.0.2', '127.0.0.3']
  }
}

const { values: args } = parseArgs({
  options: {
    larder: { type: 'string', default: path.join(here, '..', 'target', 'release', 'larder') },
    profile: { type: 'string' },
    id: { type: 'string' },
    record: { type: 'boolean', default: false },
    peers: { type: 'boolean', default: false },
    child: { type: 'boolean', default: false }
  }
})

const load = file => import(path.join(pack, file))

async function allSuites () {
  const suites = (await load('tests/index.mjs')).default.slice()
  suites.push((await load('tests/surrogate-control.mjs')).default)
  return suites
}

// One line of a process's output that matches, as soon as it comes.
async function line (stream, pattern) {
  for await (const text of createInterface({ input: stream })) {
    const found = text.match(pattern)
    if (found) return found
  }
  throw new Error(`a process ended without saying ${pattern}`)
}

async function startOrigin (dump, addresses = ['127.0.0.1']) {
  const env = { ...process.env, npm_config_protocol: 'http', npm_config_port: '0', npm_config_pidfile: '/dev/null' }
  const server = spawn(process.execPath, ['server/server.mjs'], { cwd: pack, env, stdio: ['ignore', 'pipe', 'inherit'] })
  const [, port] = await line(server.stdout, /^Listening on .*:(\d+)\/$/)
  if (dump) server.stdout.pipe(process.stdout)
  else server.stdout.resume()
  return { server, url: addresses.map(address => `http://${address}:${port}`).join(', ') }
}

class Larder {
  constructor (origin, set, isTls) {
    this.directory = mkdtempSync(path.join(tmpdir(), 'larder-conformance-'))
    this.set = [`upstream.url=${origin}`, `durable.url=file:${path.join(this.directory, 'durable')}`, ...set]
    this.scheme = isTls ? 'https' : 'http'
    this.listen = '127.0.0.1:0'
    this.config = path.join(this.directory, 'larder.toml')
    writeFileSync(this.config, isTls ? this.withCertificate() : '')
  }

  withCertificate () {
    const certificates = path.join(this.directory, 'certificates')
    execFileSync(path.join(here, '..', 'scripts', 'certificates.sh'), [certificates])
    this.ca = readFileSync(path.join(certificates, 'ca.pem'))
    const [chain, key] = ['ecdsa.pem', 'ecdsa.key'].map(file => JSON.stringify(path.join(certificates, file)))
    return `[[tls.certificate]]\nchain = ${chain}\nkey = ${key}\n`
  }

  async start () {
    const set = [`server.listen=${this.scheme}://${this.listen}`, 'admin.listen=127.0.0.1:0', ...this.set]
    const options = ['--config', this.config, ...set.flatMap(one => ['--set', one])]
    this.process = spawn(args.larder, options, { stdio: ['ignore', 'pipe', 'pipe'] })
    const said = []
    this.process.stdout.resume()
    const addresses = await new Promise((resolve, reject) => {
      let listen
      createInterface({ input: this.process.stderr }).on('line', text => {
        said.push(text)
        listen = text.match(/listening on (?:https?:\/\/)?([\d.:]+)/)?.[1] ?? listen
        const admin = text.match(/admin on ([\d.:]+)/)?.[1]
        if (listen && admin) resolve({ listen, admin })
      })
      this.process.on('exit', code => reject(new Error(`larder ended (${code}):\n${said.join('\n')}`)))
    })
    // After a restart it is found where it was.
    this.listen = addresses.listen
    this.admin = addresses.admin
  }

  async kill () {
    this.process.removeAllListeners('exit')
    const gone = once(this.process, 'exit')
    this.process.kill('SIGKILL')
    await gone
  }

  // Killed when all that it stored is on disk, so that the tests ask what is read back, not
  // whether a write was quick enough.
  async restart () {
    for (;;) {
      const metrics = await (await fetch(`http://${this.admin}/metrics`)).text()
      if (/^larder_durable_queue_objects 0$/m.test(metrics)) break
      await new Promise(resolve => setTimeout(resolve, 5))
    }
    await this.kill()
    await this.start()
  }

  async stop () {
    await this.kill()
    rmSync(this.directory, { recursive: true, force: true })
  }
}

// Lets every running test come to its next request, restarts, and lets all go on.
class Rounds {
  constructor (larder, running) {
    this.larder = larder
    this.running = running
    this.waiting = []
  }

  arrive () {
    return new Promise(resolve => {
      this.waiting.push(resolve)
      this.check()
    })
  }

  leave () {
    this.running--
    this.check()
  }

  async check () {
    if (this.waiting.length === 0 || this.waiting.length < this.running) return
    const released = this.waiting
    this.waiting = []
    await this.larder.restart()
    released.forEach(release => release())
  }
}

// Asks over TCP, over TLS, or by HTTP/2 over TLS.
async function fetchOver (over, ca) {
  if (over === 'http2') return (await import('./http2.mjs')).http2Fetch({ ca })
  const nodeFetch = (await import('node-fetch')).default
  if (over === undefined) return nodeFetch
  const agent = new https.Agent({ ca, keepAlive: true })
  return (url, init) => nodeFetch(url, { ...init, agent })
}

async function runProfile (name, ids) {
  const profile = profiles[name]
  const suites = await allSuites()
  const config = await load('client/config.mjs')
  const { makeCacheTest, testResults } = await load('client/test.mjs')
  const tests = suites
    .filter(suite => !profile.suites || profile.suites.includes(suite.id))
    .flatMap(suite => suite.tests)
    .filter(test => test.browser_only !== true && (!ids || ids.includes(test.id)))
  const dump = args.id !== undefined
  if (dump) tests.forEach(test => { test.dump = true })

  const origin = await startOrigin(dump, profile.addresses)
  const larder = new Larder(origin.url, profile.set, profile.over !== undefined)
  await larder.start()
  const ask = await fetchOver(profile.over, larder.ca)
  config.setBaseUrl(`${larder.scheme}://${larder.listen}`)
  config.setUseBrowserCache(false)
  for (const group of profile.restarts ? alike(tests) : [tests]) {
    const rounds = profile.restarts ? new Rounds(larder, group.length) : undefined
    config.setFetch(async (url, init) => {
      const number = init?.headers?.find?.(([field]) => field === 'Req-Num')?.[1]
      if (rounds && number > 1) await rounds.arrive()
      return ask(url, init)
    })
    await Promise.all(group.map(test => makeCacheTest(test).then(() => rounds?.leave())))
  }
  await larder.stop()
  origin.server.kill()
  return testResults
}

// Tests that pause after the same requests: those can wait for each other and none gets late.
function alike (tests) {
  const groups = new Map()
  for (const test of tests) {
    const rhythm = test.requests.map(request => 'pause_after' in request ? 'p' : '-').join('')
    groups.set(rhythm, [...(groups.get(rhythm) ?? []), test])
  }
  return groups.values()
}

// What the package's own page makes of a result: what a test depends on goes first.
function judge (tests, results, id) {
  const test = tests.get(id)
  const result = results[id]
  if (result === undefined) return 'not run'
  const failed = (test.depends_on ?? []).some(other => !['pass', 'yes'].includes(judge(tests, results, other)))
  if (failed) return 'dependency'
  if (result === true) return test.kind === 'check' ? 'yes' : 'pass'
  if (result[0] === 'Setup') return 'setup'
  return test.kind === 'check' ? 'no' : 'fail'
}

const isGood = verdict => verdict === 'pass' || verdict === 'yes'

function inChild (name, ids) {
  const list = ['--child', '--larder', args.larder, '--profile', name, ...(ids ? ['--id', ids.join(' ')] : [])]
  const child = spawn(process.execPath, ['--no-warnings', fileURLToPath(import.meta.url), ...list], {
    stdio: ['ignore', 'pipe', 'inherit']
  })
  let text = ''
  child.stdout.on('data', data => { text += data })
  return once(child, 'close').then(([code]) => {
    if (code !== 0) throw new Error(`the tests of profile ${name} could not be run`)
    return JSON.parse(text.slice(text.indexOf('\n{') + 1))
  })
}

async function main () {
  if (args.child) {
    const ids = args.id?.split(' ')
    delete args.id
    console.log('\n' + JSON.stringify(await runProfile(args.profile, ids)))
    process.exit(0)
  }
  const suites = await allSuites()
  const tests = new Map(suites.flatMap(suite => suite.tests.map(test => [test.id, { ...test, suite: suite.id, kind: test.kind ?? 'required' }])))
  if (args.id !== undefined) {
    if (!tests.has(args.id)) throw new Error(`there is no test with the id ${args.id}`)
    const results = await runProfile(args.profile ?? 'rfc', [args.id])
    const test = tests.get(args.id)
    console.log(`${test.name}\n${args.id} (${test.kind}): ${JSON.stringify(results[args.id])}`)
    process.exit(0)
  }
  if (args.peers) {
    await peers(tests)
    return
  }

  const expected = JSON.parse(readFileSync(expectedFile, 'utf8'))
  let worse = 0
  for (const name of args.profile ? [args.profile] : Object.keys(profiles)) {
    const results = await inChild(name)
    const verdict = id => judge(tests, results, id)
    const wanted = id => expected[id]?.[name] ?? expected[id]?.result
    const isWorse = id => !isGood(verdict(id)) && verdict(id) !== wanted(id)
    // A machine that stood still for two seconds has failed tests that count seconds. Those get a
    // second run, and nothing else does.
    const again = Object.keys(results).filter(isWorse).filter(id => !args.record)
    if (again.length > 0) {
      const needed = new Set(again)
      needed.forEach(id => (tests.get(id).depends_on ?? []).forEach(other => needed.add(other)))
      Object.assign(results, await inChild(name, [...needed]))
    }
    for (const id of Object.keys(results)) {
      const test = tests.get(id)
      const recorded = expected[id]
      if (args.record) {
        expected[id] = { kind: test.kind, ...recorded }
        if (name === 'rfc' || recorded?.result === undefined) expected[id].result = verdict(id)
        else if (expected[id].result !== verdict(id)) expected[id][name] = verdict(id)
        else delete expected[id][name]
      } else if (isWorse(id)) {
        worse++
        console.log(`WORSE  ${name}: ${id} (${test.kind}): ${verdict(id)}, expected ${wanted(id) ?? 'nothing: it is not listed'}: ${results[id]}`)
      } else if (isGood(verdict(id)) && verdict(id) !== wanted(id)) {
        console.log(`BETTER ${name}: ${id} (${test.kind}): ${verdict(id)}, was ${wanted(id)}; please record it (make conformance RECORD=1)`)
      }
    }
    console.log(`${name} (${profiles[name].about}):\n  ${summary(tests, results, expected, verdict)}`)
  }
  if (args.record) {
    const sorted = Object.fromEntries(Object.entries(expected).sort(([a], [b]) => (a < b ? -1 : 1)))
    writeFileSync(expectedFile, JSON.stringify(sorted, null, 2) + '\n')
  } else {
    for (const [id, { kind, reason, ...results }] of Object.entries(expected)) {
      if (!tests.has(id)) console.log(`${id}: expected.json lists a test that the package does not have`)
      if (kind !== 'check' && !reason && !Object.values(results).every(isGood)) {
        worse++
        console.log(`${id}: expected.json gives no reason for ${JSON.stringify(results)}`)
      }
    }
    if (worse > 0) {
      console.log(`${worse} worse than recorded; make conformance ID=… shows one of them`)
      process.exit(1)
    }
  }
}

// How many pass of each kind, and of the others how many are expected, with a reason on record.
function summary (tests, results, expected, verdict) {
  const ids = Object.keys(results)
  const ofSuite = (id, isSurrogate) => (tests.get(id).suite === 'surrogate-control') === isSurrogate
  const count = (kind, isSurrogate) => {
    const all = ids.filter(id => tests.get(id).kind === kind && ofSuite(id, isSurrogate))
    const others = all.filter(id => !isGood(verdict(id)))
    if (kind === 'check') return `checks ${all.length - others.length} yes, ${others.length} no`
    const recorded = others.filter(id => expected[id]?.reason)
    return `${kind} ${all.length - others.length} of ${all.length}, ${recorded.length} on record with a reason, ${others.length - recorded.length} other`
  }
  const kinds = ['required', 'optimal', 'check']
  const lines = [kinds.map(kind => count(kind, false)).join('; ')]
  if (ids.some(id => ofSuite(id, true))) lines.push(`Surrogate-Control: ${kinds.map(kind => count(kind, true)).join('; ')}`)
  return lines.join('\n  ')
}

// The results that the package carries of other caches, counted the same way.
async function peers (tests) {
  const list = (await load('results/index.mjs')).default.filter(peer => peer.type !== 'browser')
  for (const peer of list) {
    const results = JSON.parse(readFileSync(path.join(pack, 'results', peer.file), 'utf8'))
    const row = ['required', 'optimal'].map(kind => {
      const ids = Object.keys(results).filter(id => tests.get(id)?.kind === kind && tests.get(id).suite !== 'surrogate-control')
      const passed = ids.filter(id => judge(tests, results, id) === 'pass')
      const skipped = ids.filter(id => judge(tests, results, id) === 'dependency')
      return `${kind} ${passed.length} of ${ids.length} (${skipped.length} for what they depend on)`
    })
    console.log(`${peer.name} ${peer.version}: ${row.join(', ')}`)
  }
}

await main()
