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
    dot.title = dot.ariaLabel = text;
    const worst = ["waiting", "connecting", "open"].find((each) => [...states.values()].includes(each));
    const all = byId("state");
    all.dataset.state = worst ?? "closed";
    const words = { waiting: "reconnecting …", connecting: "connecting …", open: "live" };
    const said = words[worst] ?? "paused";
    if (all.textContent !== said) all.textContent = said;
  };
}

/** Says below a form what has become of what was sent. */
function tell(name, text) {
  byId(`${name}-told`).textContent = text;
}

/** Asks for the name anew where the server knows it no more: its key has changed, or we signed out. */
async function checkName() {
  const answer = await fetch(location, { cache: "no-store" }).catch(() => null);
  if (!answer?.ok) return;  // it is away
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  if (page.body.dataset.name !== me) location.reload();
}

// Who signs in or out in one window does so in all of this browser.
const windows = new BroadcastChannel("name");
windows.onmessage = checkName;
windows.postMessage("loaded");

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

/** A cell that names its column: a phone shows a row as a list. */
function cell(column, content) {
  const element = make("td", "", make("span", "", content));
  element.dataset.column = column;
  return element;
}

// -- what only those see who have signed in -----------------------------------------------------

if (me) {
  const chat = new Live(`ws/chat/${encodeURIComponent(document.body.dataset.room)}`, {
    onstate: show("chat"),
    onrefused: checkName,
    onmessage({ event, name, text, people }) {
      byId("people").replaceChildren(
        ...people.map((each) => make("li", "chip", avatar(each), each === me ? `${each} (you)` : each)),
      );
      if (event === "said") {
        const words = make("p", "", make("b", "", name), text);
        append(byId("chat-log"), make("li", name === me ? "said mine" : "said", avatar(name), words));
      } else if (event !== "is here") { // in one more window: no news
        append(byId("chat-log"), make("li", "event", `${name} ${event}`));
      }
    },
  });
  byId("chat-form").onsubmit = (event) => {
    event.preventDefault();
    const wasSent = chat.send(event.target.text.value);
    if (wasSent) event.target.reset();
    tell("chat", wasSent ? "" : "Not sent: there is no connection.");
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
    const body = new URLSearchParams({ text: text.value });
    const answer = await fetch(url, { method: "POST", body }).catch(() => null);
    if (!answer?.ok) {
      tell("push", `Not pushed: ${answer ? `the server answered ${answer.status}` : "the server does not answer"}.`);
      checkName();
      return;
    }
    const { reached } = await answer.json();
    if (reached) text.value = "";
    tell("push", reached ? `Pushed to ${reached} ${reached === 1 ? "page" : "pages"}.` : `Nobody has the role ${role.value} now.`);
  };

  new Live("ws/overview", {
    onstate: show("overview"),
    onmessage(rows) {
      byId("overview-count").textContent = rows.length;
      byId("overview-rows").replaceChildren(...rows.map((row) => make(
        "tr", "",
        cell("channel", make("code", "", row.path)),
        cell("user", row.user ?? "–"),
        cell("roles", row.roles.join(", ") || "–"),
        cell("since", new Date(row.since * 1000).toLocaleTimeString()),
        cell("compressed", row.compressed ? "yes" : "no"),
      )));
    },
  });
}
