# Attack 42, TLS: a certificate that is self-signed, expired or for another name ends the request before
# a byte of text or key leaves; a good one works. The servers are made here, with openssl.
command -v openssl > /dev/null || { echo "skip: openssl is not installed"; exit 77; }
model=$MODELS/crayon-15m-q8_0.gguf
mkdir ca && touch ca/index && echo 01 > ca/serial
cat > ca.cnf << 'END'
[ca]
default_ca = own
[own]
dir = ca
database = ca/index
serial = ca/serial
new_certs_dir = ca
certificate = root.pem
private_key = root.key
default_md = sha256
policy = any
email_in_dn = no
rand_serial = no
unique_subject = no
copy_extensions = copy
[any]
commonName = supplied
[req]
distinguished_name = dn
[dn]
[v3_ca]
basicConstraints = critical,CA:TRUE
END
exec 3>&2
quiet() { "$@" > log 2>&1 || { cat log >&3; exit 1; }; }
quiet openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout root.key -out root.pem \
    -subj /CN=test-root -days 2 -config ca.cnf -extensions v3_ca
issue() { # NAME SAN START END
    quiet openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout "$1.key" -out "$1.csr" -subj "/CN=$1" \
        -addext "subjectAltName=$2" -config ca.cnf
    quiet openssl ca -batch -config ca.cnf -in "$1.csr" -out "$1.pem" -startdate "$3" -enddate "$4" -notext
}
year=$(date +%Y)
issue good "DNS:localhost,IP:127.0.0.1" 20200101000000Z $((year + 5))0101000000Z
issue other "DNS:elsewhere.example" 20200101000000Z $((year + 5))0101000000Z
issue expired "DNS:localhost,IP:127.0.0.1" 20200101000000Z 20210101000000Z
quiet openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout self.key -out self.pem \
    -subj /CN=localhost -addext "subjectAltName=DNS:localhost,IP:127.0.0.1" -days 2 -config ca.cnf

body='{"choices":[{"index":0,"message":{"role":"assistant","content":"over TLS"},"finish_reason":"stop"}]}'
printf 'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s' ${#body} "$body" > reply
ask() { # CERTIFICATE CA...
    local cert=$1 port server
    shift
    # Another program may hold the port, then s_server ends: the next one. Ports below 32768 are not
    # given to outgoing connections. Connecting to see whether it listens would use up its one accept.
    for _ in $(seq 20); do
        port=$((20000 + RANDOM % 12000))
        : > got
        rm -f done in
        mkfifo in
        openssl s_server -quiet -accept 127.0.0.1:$port -naccept 1 -cert "$cert.pem" -key "$cert.key" < in > got 2> server.err &
        server=$!
        # The reply is written when the request has come.
        (
            while [ ! -f done ]; do grep -q messages got && cat reply && break; sleep 0.05; done
            while [ ! -f done ]; do sleep 0.05; done
        ) > in &
        while sleep 0.05 && kill -0 $server 2> /dev/null; do
            grep -qi "0100007F:$(printf '%04X' $port) 00000000:0000 0A" /proc/net/tcp && break 2
        done
        touch done
        wait
    done
    CRAYON_API_KEY=CANARY-77aa01 "$CRAYON" run -m "$model" -p "secret words" -n 4 --temp 0 --rule random --budget 1 \
        --upstream "https://localhost:$port" --upstream-model big --yes --json "$@" > out 2> err
    echo "exit $?"
    touch done
    kill $server 2> /dev/null
    wait
    rm in
    sed -n 's/^ *"\(text\|route\|why\|left_device_bytes\)": \(.*\)/\1 \2/p' out | sed -E 's/localhost:[0-9]+/HOST/g; s/^text "[^o].*/text of the device/'
    echo "the server saw the key: $(grep -c CANARY got)"
}
for cert in self expired other; do
    echo "$cert:"
    ask $cert --upstream-ca root.pem
done
echo "good, but nobody vouches for it:"
ask good
echo "good:"
ask good --upstream-ca root.pem
