// The page's script. What people wrote goes into the page as text (textContent), never as HTML.

const byId = (id) => document.getElementById(id);

/** A socket that comes back after it was lost; `state` shows how it is. Gives `send` and `move`. */
function live(path, state, onmessage) {
  let socket, timer, attempts = 0;

  function open() {
    const url = new URL(path, document.baseURI);
    url.protocol = url.protocol.replace("http", "ws");
    state.textContent = "connecting";
    const mine = socket = new WebSocket(url);
    mine.onopen = () => { attempts = 0; state.textContent = "open"; };
    mine.onmessage = (event) => onmessage(event.data);
    mine.onclose = (event) => {
      if (mine !== socket) return;  // it has been replaced
      state.textContent = `closed (${event.code}${event.reason ? " " + event.reason : ""})`;
      // Half of the delay is chance, or a thousand pages would come back at the same instant.
      const delay = Math.min(10000, 250 * 2 ** attempts++);
      timer = setTimeout(open, delay / 2 + Math.random() * delay / 2);
    };
  }

  open();
  return {
    send(text) {
      const isOpen = socket.readyState === WebSocket.OPEN;
      if (isOpen) socket.send(text);
      return isOpen;
    },
    move(newPath) {
      clearTimeout(timer);
      path = newPath;
      const old = socket;
      open();
      old.close(1000);
    },
  };
}

function append(log, text) {
  const line = document.createElement("li");
  line.textContent = text;
  log.append(line);
  while (log.children.length > 200) log.firstChild.remove();
  log.scrollTop = log.scrollHeight;
}

if (document.body.dataset.name) {
  const room = new URLSearchParams(location.search).get("room") || "lobby";
  const chat = live(`ws/chat/${encodeURIComponent(room)}`, byId("chat-state"), (data) => {
    const { event, name, text, people } = JSON.parse(data);
    append(byId("chat-log"), event === "said" ? `${name}: ${text}` : `${name} ${event}`);
    byId("people").textContent = people.join(", ");
  });
  byId("chat-form").onsubmit = (event) => {
    event.preventDefault();
    if (chat.send(event.target.text.value)) event.target.reset();
  };
} else {
  byId("chat-state").textContent = "sign in first";
  byId("chat-form").inert = true;
}

const pushPath = () => `ws/test?role=${encodeURIComponent(byId("role").value)}`;
const push = live(pushPath(), byId("push-state"), (data) => append(byId("push-log"), data));
byId("role").onchange = () => push.move(pushPath());
byId("push-form").onsubmit = async (event) => {
  event.preventDefault();
  const { role, text } = event.target;
  const url = `notify/${encodeURIComponent(role.value)}`;
  const answer = await fetch(url, { method: "POST", body: new URLSearchParams({ text: text.value }) });
  if (answer.ok) text.value = "";
};
