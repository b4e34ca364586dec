#!/bin/sh
# Makes what tests of TLS need, in the directory that is its argument: a certificate authority (ca.pem), and for
# localhost, 127.0.0.1, and the names below larder.test certificates that it has issued, with ECDSA P-256 (ecdsa.pem,
# ecdsa.key) and RSA 2048 (rsa.pem, rsa.key). A second argument is the number of further ones with ECDSA
# (1.pem, 1.key and so on).
set -eu
mkdir -p "$1"
cd "$1"

new_key() { # KIND FILE
	case $1 in
	ecdsa) openssl genpkey -quiet -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$2" ;;
	rsa) openssl genpkey -quiet -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out "$2" ;;
	esac
}

issue() { # KIND NAME SUBJECT-ALTERNATIVE-NAMES
	new_key "$1" "$2.key"
	openssl req -new -key "$2.key" -subj "/CN=$2.larder.test" -out "$2.csr"
	printf '%s\n' "subjectAltName=$3" "basicConstraints=critical,CA:false" "keyUsage=critical,digitalSignature" \
		"extendedKeyUsage=serverAuth" "subjectKeyIdentifier=hash" "authorityKeyIdentifier=keyid" \
		"crlDistributionPoints=URI:http://ca.larder.test/crl" >"$2.ext"
	openssl x509 -req -in "$2.csr" -CA ca.pem -CAkey ca.key -days 90 -sha256 -extfile "$2.ext" -out "$2.pem" 2>"$2.log" || { cat "$2.log" >&2; exit 1; }
	rm "$2.csr" "$2.ext" "$2.log"
}

new_key ecdsa ca.key
openssl req -x509 -new -key ca.key -days 365 -sha256 -subj "/CN=Larder's tests" -addext "keyUsage=critical,keyCertSign,cRLSign" -out ca.pem
issue ecdsa ecdsa "DNS:localhost,DNS:ecdsa.larder.test,IP:127.0.0.1"
issue rsa rsa "DNS:rsa.larder.test"
number=1
while [ "$number" -le "${2:-0}" ]; do
	issue ecdsa "$number" "DNS:localhost,DNS:ecdsa.larder.test,IP:127.0.0.1"
	number=$((number + 1))
done
