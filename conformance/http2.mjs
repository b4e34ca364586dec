// fetch by HTTP/2 over TLS, over one connection for each origin: as much of it as the cache tests use.

import http2 from 'node:http2'
import { Headers, Response } from 'node-fetch'

// Fields that HTTP/2 does without (RFC 9113 §8.2.2).
const ofHttp1 = new Set(['connection', 'keep-alive', 'proxy-connection', 'transfer-encoding', 'upgrade', 'host'])

export function http2Fetch (options) {
  const sessions = new Map()

  function sessionOf (origin) {
    let session = sessions.get(origin)
    if (!session || session.closed || session.destroyed) {
      session = http2.connect(origin, options)
      // Whoever waits for a response learns of it there.
      session.on('error', () => {})
      sessions.set(origin, session)
    }
    return session
  }

  function fieldsOf (init, url) {
    const fields = { ':method': init.method ?? 'GET', ':path': url.pathname + url.search, ':authority': url.host, ':scheme': 'https' }
    for (const [name, value] of Object.entries(new Headers(init.headers).raw())) {
      // RFC 9113 §8.2.1 has no values that begin or end with white space; those of HTTP/1.1 lose it on their way.
      if (!ofHttp1.has(name)) fields[name] = value.map(one => one.trim())
    }
    // As fetch has it for those that don't say so.
    fields.accept ??= '*/*'
    return fields
  }

  return (address, init = {}) => new Promise((resolve, reject) => {
    const url = new URL(address)
    const session = sessionOf(url.origin)
    const stream = session.request(fieldsOf(init, url), { endStream: init.body === undefined })
    stream.on('error', reject)
    stream.on('response', fields => {
      const headers = new Headers()
      for (const [name, value] of Object.entries(fields)) {
        if (!name.startsWith(':')) [value].flat().forEach(one => headers.append(name, one))
      }
      const pieces = []
      stream.on('data', piece => pieces.push(piece))
      stream.on('end', () => {
        // Ends what breaks off, too.
        if (stream.rstCode !== http2.constants.NGHTTP2_NO_ERROR) return
        const body = Buffer.concat(pieces)
        resolve(new Response(body, { status: fields[':status'], headers, url: address }))
      })
    })
    if (init.body !== undefined) stream.end(init.body)
  })
}
