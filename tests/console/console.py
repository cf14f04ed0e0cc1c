#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Drives the console page in headless Chromium over its debugging pipe (standard library only) and keeps pictures.

console.py CHROMIUM URL EXAMPLES PICTURES
"""
import base64, json, os, subprocess, sys, tempfile, time

chromium, url, examples, pictures = sys.argv[1:5]
os.makedirs(pictures, exist_ok=True)
to_r, to_w = os.pipe()
from_r, from_w = os.pipe()
profile = tempfile.mkdtemp()


def wire():  # in the child: its pipes are descriptors 3 and 4
    os.dup2(to_r, 100), os.dup2(from_w, 101)
    os.dup2(100, 3), os.dup2(101, 4)
    for fd in (3, 4):
        os.set_inheritable(fd, True)


browser = subprocess.Popen([chromium, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                            "--remote-debugging-pipe", "--user-data-dir=" + profile, "--window-size=1100,760",
                            "--hide-scrollbars", "--no-first-run", "--disable-extensions", "--disable-background-networking"],
                           preexec_fn=wire, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
os.close(to_r), os.close(from_w)
buffer, count, events = b"", 0, []


def receive():
    global buffer
    while b"\0" not in buffer:
        more = os.read(from_r, 65536)
        if not more:
            sys.exit("the browser went away")
        buffer += more
    message, buffer = buffer.split(b"\0", 1)
    return json.loads(message)


def send(method, session=None, **params):
    global count
    count += 1
    message = {"id": count, "method": method, "params": params}
    if session:
        message["sessionId"] = session
    os.write(to_w, json.dumps(message).encode() + b"\0")
    mine = count
    while True:
        m = receive()
        if m.get("id") == mine:
            if "error" in m:
                sys.exit(f"{method}: {m['error']}")
            return m["result"]
        events.append(m)


target = send("Target.createTarget", url="about:blank")["targetId"]
s = send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
for domain in ("Page", "Runtime", "Log", "Network", "DOM", "Accessibility"):
    send(domain + ".enable", s)


def js(code):
    r = send("Runtime.evaluate", s, expression=code, awaitPromise=True, returnByValue=True)
    if "exceptionDetails" in r:
        sys.exit(f"{code}: {r['exceptionDetails']['exception'].get('description')}")
    return r["result"].get("value")


def wait(code, what, seconds=60):
    end = time.time() + seconds
    while time.time() < end:
        if js("Boolean(" + code + ")"):
            return
        time.sleep(0.1)
    picture("failed")
    sys.exit("not seen: " + what + "; alert: " + str(js("document.getElementById('alert').textContent")))


def key(name, code=0, text=None):
    extra = {"text": text} if text else {}
    send("Input.dispatchKeyEvent", s, type="keyDown", key=name, windowsVirtualKeyCode=code, **extra)
    send("Input.dispatchKeyEvent", s, type="keyUp", key=name, windowsVirtualKeyCode=code)


def picture(name):
    data = send("Page.captureScreenshot", s, format="png")["data"]
    with open(os.path.join(pictures, name + ".png"), "wb") as f:
        f.write(base64.b64decode(data))


def scheme(value):
    send("Emulation.setEmulatedMedia", s, features=[{"name": "prefers-color-scheme", "value": value}])


send("Emulation.setFocusEmulationEnabled", s, enabled=True)
scheme("light")
send("Page.navigate", s, url=url)
wait("document.readyState === 'complete' && document.getElementById('model').options.length > 0", "the models")
print("title:", js("document.title"))
print("models:", js("[...document.getElementById('model').options].length > 0"))
picture("1-welcome")

# Keyboard alone: the message field has the focus, Enter sends.
print("focus:", js("document.activeElement.id"))
# (The model itself tells a story; a palette answers in one line, too short for a speed.)
chosen = js("document.getElementById('model').value")
js("{ const m = document.getElementById('model'); m.value = [...m.options].map(o => o.value).find(v => !v.includes(':')); "
   "m.dispatchEvent(new Event('change')); document.getElementById('prompt').focus() }")
send("Input.insertText", s, text="Once upon a time")
key("Enter", 13, "\r")
wait("document.querySelector('.turn.assistant .facts')", "an answer with its facts", 120)
print("turns:", js("document.querySelectorAll('.turn').length"))
print("route:", js("document.querySelector('.turn.assistant .badge').textContent"))
print("confidence shown:", js("document.querySelector('.turn.assistant meter').value > 0"))
print("speed shown:", js("/tok\\/s/.test(document.getElementById('speed').textContent)"))
js("document.querySelector('details').open = true")
picture("2-chat")
js("{ const m = document.getElementById('model'); m.value = %r; m.dispatchEvent(new Event('change')) }" % chosen)

# Markup of a model stays text.
js("document.getElementById('prompt').value = '<img src=x onerror=alert(1)><b>bold</b>'; document.getElementById('ask').requestSubmit()")
wait("document.querySelectorAll('.turn.assistant .facts').length === 2", "a second answer", 120)
print("markup in the conversation:", js("document.querySelectorAll('.turn img, .turn b').length"))

# By wish to the server: who answered is shown, and the receipt.
js("document.getElementById('route').value = 'server'; document.getElementById('prompt').value = 'What is the chemical symbol of iron?'; "
   "document.getElementById('ask').requestSubmit()")
wait("document.querySelectorAll('.turn.assistant .facts').length === 3", "the server's answer")
print("route:", js("[...document.querySelectorAll('.turn.assistant')].pop().querySelector('.badge').textContent"))
print("answer:", js("[...document.querySelectorAll('.turn.assistant')].pop().querySelector('p').textContent"))
print("bytes left shown:", js("/\\d+ bytes left this device/.test([...document.querySelectorAll('.facts')].pop().textContent)"))
picture("2-server")

# Tabs by arrow keys.
js("document.getElementById('tab-chat').focus()")
key("ArrowRight", 39)
print("tab:", js("document.activeElement.id + ' ' + document.activeElement.getAttribute('aria-selected')"))
print("panel:", js("!document.getElementById('fit').hidden && document.getElementById('chat').hidden"))

# Fit: a file of examples.
root = send("DOM.getDocument", s)["root"]["nodeId"]
node = send("DOM.querySelector", s, nodeId=root, selector="#file")["nodeId"]
send("DOM.setFileInputFiles", s, nodeId=node, files=[os.path.abspath(examples)])
wait("document.getElementById('examples').value.length > 10", "the file's text")
js("document.getElementById('blend').requestSubmit()")
wait("document.querySelectorAll('#blend-result .tile').length === 3 || !document.getElementById('alert').hidden", "the blend", 120)
alert = js("document.getElementById('alert').textContent")
missing = "nothing at this path" in alert
if missing: # a server that is older than the page
    print("skip: this server has no /v1/crayon/blend", file=sys.stderr)
else:
    tiles = js("[...document.querySelectorAll('#blend-result .tile')].map((t) => t.textContent)")
    weights = js("document.querySelectorAll('.weights li').length")
    helps = js("(([a, b]) => parseFloat(b) > parseFloat(a))([...document.querySelectorAll('#blend-result .tile b')].slice(1).map((t) => t.textContent))")
    print("blend:", tiles, weights, file=sys.stderr)
    if alert or len(tiles) != 3 or weights < 2 or not helps:
        sys.exit(f"the blend does not show what it should: {alert} {tiles} {weights}")
picture("3-fit")

key("ArrowRight", 39)
js("document.getElementById('tab-palettes').click()")
wait("document.querySelectorAll('#palette-list li').length > 1", "the palettes")
picture("4-palettes")
js("document.getElementById('tab-ledger').click()")
wait("document.querySelectorAll('#totals .tile').length === 5 && document.querySelectorAll('#rows tr').length > 0", "the ledger")
print("ledger:", js("document.querySelector('#rows tr td.why').textContent + ', ' + document.querySelector('#rows tr td.ok').textContent"))
picture("5-ledger")
scheme("dark")
js("document.getElementById('tab-chat').click()")
picture("6-dark")
send("Emulation.setDeviceMetricsOverride", s, width=390, height=780, deviceScaleFactor=2, mobile=True)
picture("7-phone")
print("phone: wider than its screen:", js("document.documentElement.scrollWidth > innerWidth"))

# What a screen reader gets: every control has a name.
nameless = []
for n in send("Accessibility.getFullAXTree", s)["nodes"]:
    role = n.get("role", {}).get("value")
    if not n.get("ignored") and role in ("button", "textbox", "combobox", "tab", "link", "meter", "searchbox") \
            and not n.get("name", {}).get("value"):
        nameless.append(role)
print("controls without a name:", nameless)
external = [m["params"]["request"]["url"] for m in events if m.get("method") == "Network.requestWillBeSent"
            and not m["params"]["request"]["url"].startswith((url, "data:", "about:", "blob:"))]
print("requests elsewhere:", external)
errors = [m["params"] for m in events if m.get("method") == "Runtime.exceptionThrown"
          or m.get("method") == "Log.entryAdded" and m["params"]["entry"]["level"] == "error"
          and not (missing and "crayon/blend" in m["params"]["entry"].get("url", ""))]
print("errors:", errors)
send("Browser.close")
browser.wait(20)
