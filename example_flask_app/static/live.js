/**
 * A WebSocket that comes back after it was lost: after a restart of the server, out of a tunnel.
 *
 * `path` is relative to the page. `onmessage` gets text, parsed where it is JSON. `onstate` gets
 * "connecting", "open", "waiting" or "closed", and a text for people. `onrefused` is called when the
 * application closed it with a code of its own, 4000 and up, or it failed several times in a row: the
 * server may be away, or may not let us in any more.
 */
export class Live {
  constructor(path, { onmessage, onstate = () => {}, onrefused }) {
    Object.assign(this, { path, onmessage, onstate, onrefused, attempts: 0, socket: null });
    addEventListener("online", () => this.timer && this.open());
    this.open();
  }

  open() {
    this.close();
    const url = new URL(this.path, document.baseURI);
    url.protocol = url.protocol.replace("http", "ws");
    const socket = this.socket = new WebSocket(url);
    this.onstate("connecting", "connecting");
    socket.onopen = () => { this.attempts = 0; this.onstate("open", "connected"); };
    socket.onmessage = ({ data }) => this.onmessage(parse(data));
    socket.onclose = ({ code, reason }) => this.retry(code, reason);
  }

  retry(code, reason) {
    // Half of the delay is chance, or a thousand pages would come back at the same instant.
    const delay = Math.min(10000, 250 * 2 ** this.attempts++) * (0.5 + Math.random() / 2);
    this.timer = setTimeout(() => this.open(), delay);
    this.onstate("waiting", `lost (${code}${reason && ` ${reason}`}), reconnecting`);
    if (code >= 4000 || this.attempts > 2) this.onrefused?.();
  }

  /** Gives false when the message cannot be sent now. */
  send(text) {
    const isOpen = this.socket?.readyState === WebSocket.OPEN;
    if (isOpen) this.socket.send(text);
    return isOpen;
  }

  close() {
    clearTimeout(this.timer);
    this.timer = 0;
    if (!this.socket) return;
    this.socket.onclose = this.socket.onmessage = this.socket.onopen = null;
    this.socket.close(1000);
    this.socket = null;
    this.onstate("closed", "paused");
  }
}

function parse(data) {
  try {
    return JSON.parse(data);
  } catch {
    return data;
  }
}
