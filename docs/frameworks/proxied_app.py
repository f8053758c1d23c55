"""Behind a proxy that ends TLS: `python -m wsmiddleware run proxied_app:app`."""

from flask_app import app
from werkzeug.middleware.proxy_fix import ProxyFix

# Outside of the WebSocketMiddleware: it shall see the host, the scheme and the address that the
# browser used and not the proxy's. One proxy in front of us is believed, and nobody else.
app.wsgi_app = ProxyFix(app.wsgi_app, x_for=1, x_proto=1, x_host=1)
