// Runs in the pages of the leak corpus, after rrweb and its console plugin in
// the same script file. It is an SDK that fails: nothing is masked or blocked,
// URLs keep their query, and requests are recorded with headers and bodies.
// The script that drives the page starts it, cuts the batches and takes them.
(() => {
  const stream = crypto.getRandomValues(new Uint32Array(1))[0] >>> 1;
  let seq = 0;
  let events = [];
  let batches = [];
  let stop;

  function cut(end) {
    if (events.length === 0 && !end) return;
    const head = JSON.stringify({ stream, seq, end, sent_at: Date.now() });
    batches.push(`${head.slice(0, -1)},"events":[${events.join(',')}]}`);
    seq += 1;
    events = [];
  }

  const headersOf = (headers) => Object.fromEntries(new Headers(headers ?? {}));

  function headersOfXhr(xhr) {
    const lines = xhr.getAllResponseHeaders().trim().split('\r\n').filter(Boolean);
    return Object.fromEntries(lines.map((line) => {
      const colon = line.indexOf(':');
      return [line.slice(0, colon).toLowerCase(), line.slice(colon + 1).trim()];
    }));
  }

  // Two plugins see each request: one with rrweb's name that records all of
  // it, and one like the SDK's that records its line, query and all.
  const watchers = { 'rrweb/network@1': [], 'clairvio/network@1': [] };

  function finish(request) {
    const full = {
      initiatorType: request.kind === 'fetch' ? 'fetch' : 'xmlhttprequest',
      url: request.url,
      name: request.url,
      method: request.method,
      status: request.status,
      startTime: request.startTime,
      endTime: performance.now(),
      requestHeaders: request.requestHeaders,
      responseHeaders: request.responseHeaders,
      requestBody: request.requestBody,
      responseBody: request.responseBody,
    };
    const line = {
      kind: request.kind,
      method: request.method,
      url: request.url,
      started_at: request.startedAt,
      status: request.status,
      duration_ms: Math.round(performance.now() - request.startTime),
    };
    for (const emit of watchers['rrweb/network@1']) emit({ requests: [full] });
    for (const emit of watchers['clairvio/network@1']) emit({ requests: [line] });
  }

  const begin = (kind, method, url, headers, body) => ({
    kind,
    method: method.toUpperCase(),
    url: new URL(url, location.href).href,
    // The page's own scripts read cookies too, and so does a careless SDK.
    requestHeaders: document.cookie ? { ...headers, Cookie: document.cookie } : headers,
    requestBody: typeof body === 'string' ? body : null,
    startTime: performance.now(),
    startedAt: Date.now(),
  });

  function watchRequests() {
    const originalFetch = window.fetch;
    window.fetch = async function fetch(url, init) {
      const request = begin('fetch', init?.method ?? 'GET', url, headersOf(init?.headers), init?.body);
      const response = await originalFetch.call(window, url, init);
      const responseBody = await response.clone().text();
      finish({ ...request, status: response.status, responseHeaders: headersOf(response.headers), responseBody });
      return response;
    };

    const xhr = XMLHttpRequest.prototype;
    const { open: originalOpen, send: originalSend, setRequestHeader: originalSetHeader } = xhr;
    const opened = new WeakMap();
    xhr.open = function open(method, url, ...rest) {
      opened.set(this, { method, url, headers: {} });
      return originalOpen.call(this, method, url, ...rest);
    };
    xhr.setRequestHeader = function setRequestHeader(name, value) {
      opened.get(this).headers[name] = value;
      return originalSetHeader.call(this, name, value);
    };
    xhr.send = function send(body) {
      const { method, url, headers } = opened.get(this);
      const request = begin('xhr', method, url, headers, body);
      this.addEventListener('loadend', () => finish({
        ...request, status: this.status, responseHeaders: headersOfXhr(this), responseBody: this.responseText,
      }));
      return originalSend.call(this, body);
    };
  }

  const networkPlugin = (name) => ({
    name,
    observer(emit, win) {
      if (win === window) watchers[name].push(emit);
      return () => {};
    },
  });

  // A plugin that the server has never heard of; the page says what it records.
  let emitThing;
  const unknownPlugin = {
    name: 'acme/thing@1',
    observer(emit, win) {
      if (win === window) emitThing = emit;
      return () => {};
    },
  };

  window.leaks = {
    start() {
      stop = rrweb.record({
        emit(event) { events.push(JSON.stringify(event)); },
        maskAllInputs: false,
        maskInputOptions: { password: false },
        // No element has these, so that rrweb's own classes mask nothing either.
        maskTextClass: 'no-such-mask',
        blockClass: 'no-such-block',
        ignoreClass: 'no-such-ignore',
        slimDOMOptions: {},
        inlineStylesheet: true,
        recordCanvas: true,
        plugins: [
          rrwebPluginConsoleRecord.getRecordConsolePlugin({
            level: ['log', 'info', 'warn', 'error'],
            lengthThreshold: 1000,
            stringifyOptions: { stringLengthLimit: 4000, numOfKeysLimit: 50, depthOfLimit: 6 },
          }),
          networkPlugin('rrweb/network@1'),
          networkPlugin('clairvio/network@1'),
          unknownPlugin,
        ],
      });
      watchRequests();
      rrweb.record.addCustomEvent('clairvio/page', { href: location.href });
    },
    flush() { cut(false); },
    snapshot() { rrweb.record.takeFullSnapshot(); },
    emitThing(payload) { emitThing(payload); },
    // What an extension that sees more than the page's scripts would record.
    emitRequests(requests) {
      for (const emit of watchers['rrweb/network@1']) emit({ requests });
    },
    end() {
      stop();
      cut(true);
    },
    take() {
      const taken = batches;
      batches = [];
      return taken;
    },
  };
})();
