# As a service: systemd hears READY and the watchdog, hands over a socket, --offline leaves only that, and the log has no text.
command -v python3 > /dev/null || { echo "skip: python3 is not installed"; exit 77; }
cat > run.py <<'END'
import json, os, re, socket, subprocess, sys, time, urllib.request
crayon, model, offline = sys.argv[1], sys.argv[2], sys.argv[3:]
keep = [os.open("/dev/null", 0) for _ in range(4)]  # so that 3 is free to be taken below
notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
notify.bind(os.getcwd() + "/notify")
notify.settimeout(60)
listener = socket.socket()
listener.bind(("127.0.0.1", 0))
listener.listen(16)
port = listener.getsockname()[1]
os.dup2(listener.fileno(), 3, inheritable=True)
env = dict(os.environ, NOTIFY_SOCKET=os.getcwd() + "/notify", WATCHDOG_USEC="400000", LISTEN_FDS="1", CRAYON_API_KEY="CANARY-5150")
p = subprocess.Popen(["sh", "-c", 'LISTEN_PID=$$ exec "$@"', "sh", crayon, "serve", "-m", model, "--log", "json", "-t", "1"] + offline,
                     env=env, pass_fds=(3,), stdout=open("out", "w"), stderr=open("err", "w"))
print("systemd hears:", notify.recv(100).decode())
print("watchdog:", notify.recv(100).decode())
print("the socket of systemd:", open("out").read().strip() == "http://127.0.0.1:%d/v1" % port)
ask = lambda extra: urllib.request.Request("http://127.0.0.1:%d/v1/chat/completions" % port, json.dumps(dict(
    {"model": "crayon-15m-q8_0", "messages": [{"role": "user", "content": "SECRETWORD"}], "max_tokens": 3}, **extra)).encode(),
    {"Content-Type": "application/json"})
r = json.load(urllib.request.urlopen(ask({})))
print("answer:", r["object"], r["crayon"]["route"] + ":", re.sub(r"\d\.\d+", "N", r["crayon"]["why"]))
modes = [int(l.split()[1]) for t in os.listdir("/proc/%d/task" % p.pid)
         for l in open("/proc/%d/task/%s/status" % (p.pid, t)) if l.startswith("Seccomp:")]
print("every thread under the filter:", len(modes) > 2 and all(m == 2 for m in modes))
fds = [os.readlink("/proc/%d/fd/%s" % (p.pid, f)) for f in os.listdir("/proc/%d/fd" % p.pid)]
print("key in the environment:", b"CANARY" in open("/proc/%d/environ" % p.pid, "rb").read() if os.access("/proc/%d/environ" % p.pid, os.R_OK) else False)
p.terminate()
while True:
    m = notify.recv(100).decode()
    if m != "WATCHDOG=1":
        break
print("systemd hears:", m)
print("ended with", p.wait(60))
lines = [json.loads(l) for l in open("err") if l.startswith("{")]
print("log lines:", len(lines), sorted(lines[0])[:4], lines[0]["http"], lines[0]["result"], "route " + lines[0]["route"])
print("text in the log:", "SECRETWORD" in open("err").read(), "key:", "CANARY" in open("err").read())
END
echo "online, with an upstream that nobody runs:"
python3 run.py "$CRAYON" "$MODELS/crayon-15m-q8_0.gguf" --upstream http://127.0.0.1:1 --upstream-model big --rule random --budget 1 2>&1
rm -f notify
echo "offline, with the same upstream:"
python3 run.py "$CRAYON" "$MODELS/crayon-15m-q8_0.gguf" --upstream http://127.0.0.1:1 --upstream-model big --rule random --budget 1 --offline 2>&1
echo "keys on the disk: $(grep -rl CANARY "$HOME" . --include='*' --exclude=run.py | wc -l)"
