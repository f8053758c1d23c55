// The page's script. What people wrote goes into the page as text, never as HTML: see `make`.
import { Live } from "./live.js";

const byId = (id) => document.getElementById(id);
const me = document.body.dataset.name;

/** An element; its children are elements or text. */
function make(tag, className, ...children) {
  const element = document.createElement(tag);
  element.className = className;
  element.append(...children);
  return element;
}

/** The same colour for the same name in every window. */
function avatar(name) {
  const hue = [...name].reduce((sum, letter) => (sum * 31 + letter.codePointAt(0)) % 8, 7);
  const badge = make("span", `avatar hue-${hue}`, [...name][0].toUpperCase());
  badge.ariaHidden = "true";
  return badge;
}

function append(log, line) {
  log.append(line);
  while (log.children.length > 200) log.firstElementChild.remove();
  log.scrollTop = log.scrollHeight;
}

// -- how the connections are --------------------------------------------------------------------

const states = new Map();

/** Shows one connection's state in its card, and that of all of them at the top. */
function show(name) {
  return (state, text) => {
    states.set(name, state);
    const dot = byId(`${name}-state`);
    dot.dataset.state = state;
    dot.title = text;
    const worst = ["waiting", "connecting", "open"].find((each) => [...states.values()].includes(each));
    const all = byId("state");
    all.dataset.state = worst ?? "closed";
    const words = { waiting: "reconnecting …", connecting: "connecting …", open: "live" };
    const said = words[worst] ?? "paused";
    if (all.textContent !== said) all.textContent = said;
  };
}

/** Asks for the name anew where the server knows it no more: its key has changed, or we signed out. */
async function checkName() {
  const answer = await fetch(location, { cache: "no-store" }).catch(() => null);
  if (!answer?.ok) return;  // it is away
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  if (page.body.dataset.name !== me) location.reload();
}

// -- the feed -----------------------------------------------------------------------------------

const values = [];

function draw({ recent, number, looking, value }) {
  if (recent) values.splice(0, Infinity, ...recent);
  else values.push(value);
  values.splice(0, values.length - 60);
  const low = Math.min(...values) - 0.5, high = Math.max(...values) + 0.5;
  const points = values.map((each, i) => {
    const x = (i * 240) / Math.max(1, values.length - 1);
    return `${x},${60 - ((each - low) / (high - low)) * 56}`;
  });
  byId("feed-line").setAttribute("points", points.join(" "));
  byId("feed-area").setAttribute("points", `0,64 ${points.join(" ")} 240,64`);
  byId("feed-value").textContent = `${values.at(-1).toFixed(1)} °C`;
  if (number) byId("feed-about").textContent = `tick ${number} of this loop, ${looking} looking`;
}

const feed = new Live("ws/feed", { onmessage: draw, onstate: show("feed") });
byId("feed-switch").onclick = ({ currentTarget: button }) => {
  const isPaused = !feed.socket;
  button.textContent = isPaused ? "Pause" : "Resume";
  if (isPaused) feed.open();
  else feed.close();
};

// -- what only those see who have signed in -----------------------------------------------------

if (me) {
  const room = new URLSearchParams(location.search).get("room") || "lobby";
  byId("room").textContent = room;
  const chat = new Live(`ws/chat/${encodeURIComponent(room)}`, {
    onstate: show("chat"),
    onrefused: checkName,
    onmessage({ event, name, text, people }) {
      byId("people").replaceChildren(
        ...people.map((each) => make("li", "chip", avatar(each), each === me ? `${each} (you)` : each)),
      );
      const line = event === "said"
        ? make("li", name === me ? "said mine" : "said", avatar(name), make("p", "", make("b", "", name), text))
        : make("li", "event", `${name} ${event}`);
      append(byId("chat-log"), line);
    },
  });
  byId("chat-form").onsubmit = (event) => {
    event.preventDefault();
    if (chat.send(event.target.text.value)) event.target.reset();
  };

  const pushPath = () => `ws/test?role=${encodeURIComponent(byId("role").value)}`;
  const push = new Live(pushPath(), {
    onstate: show("push"),
    onmessage(text) {
      if (text !== "Welcome") append(byId("push-log"), make("li", "said", make("p", "", String(text))));
    },
  });
  byId("role").onchange = () => {
    push.path = pushPath();
    push.open();
  };
  byId("push-form").onsubmit = async (event) => {
    event.preventDefault();
    const { role, text } = event.target;
    const url = `notify/${encodeURIComponent(role.value)}`;
    const answer = await fetch(url, { method: "POST", body: new URLSearchParams({ text: text.value }) });
    if (answer.ok) text.value = "";
  };

  new Live("ws/overview", {
    onstate: show("overview"),
    onmessage(rows) {
      byId("overview-count").textContent = rows.length;
      byId("overview-rows").replaceChildren(...rows.map((row) => make(
        "tr", "",
        make("td", "", make("code", "", row.path)),
        make("td", "", row.user ?? "–"),
        make("td", "", row.roles.join(", ") || "–"),
        make("td", "", new Date(row.since * 1000).toLocaleTimeString()),
        make("td", "", row.compressed ? "yes" : "no"),
      )));
    },
  });
}
