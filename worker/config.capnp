# For a bare workerd on this machine: AUTH_TOKEN=… workerd serve config.capnp --directory-path=disk=FOLDER --socket-addr=http=127.0.0.1:8787
using Workerd = import "/workerd/workerd.capnp";

const config :Workerd.Config = (
  services = [
    (name = "sync", worker = .sync),
    (name = "disk", disk = (path = "data", writable = true)),
  ],
  sockets = [ (name = "http", address = "127.0.0.1:8787", http = (), service = "sync") ],
);

const sync :Workerd.Worker = (
  modules = [ (name = "index.js", esModule = embed "dist/index.js") ],
  compatibilityDate = "2025-05-08",
  compatibilityFlags = ["enable_request_signal", "nodejs_compat"],
  durableObjectNamespaces = [ (className = "WebSocketServer", uniqueKey = "sync-WebSocketServer", enableSql = true) ],
  durableObjectStorage = (localDisk = "disk"),
  bindings = [
    (name = "WEBSOCKET_SERVER", durableObjectNamespace = "WebSocketServer"),
    (name = "AUTH_TOKEN", fromEnvironment = "AUTH_TOKEN"),
  ],
);
