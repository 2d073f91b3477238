// Runs in every recorded page, after rrweb and its console plugin in the same
// script file. It does what the browser SDK does with events: it starts rrweb
// with masking, cuts the event flow into batches and sends them home.
(() => {
  const FLUSH_INTERVAL_MS = 5000;
  // A batch has to fit into one sendBeacon call, which browsers cap at 64 KiB.
  // The envelope around the events takes part of that.
  const MAX_BATCH_BYTES = 64 * 1024;
  const ENVELOPE_BYTES = 256;
  const BATCH_URL = '/clairvio/batch';

  // Taken before the network plugin wraps fetch, so that the recorder never
  // records its own uploads.
  const sendFetch = window.fetch.bind(window);
  const encoder = new TextEncoder();

  // One page load is one stream: 31 bits stay positive in every signed integer.
  const stream = crypto.getRandomValues(new Uint32Array(1))[0] >>> 1;
  let seq = 0;
  let buffered = [];
  let bufferedBytes = 0;

  function takeBatch(end) {
    const head = JSON.stringify({ stream, seq, end, sent_at: Date.now() });
    const body = `${head.slice(0, -1)},"events":[${buffered.join(',')}]}`;
    seq += 1;
    buffered = [];
    bufferedBytes = 0;
    return body;
  }

  function flush() {
    if (buffered.length > 0) {
      sendFetch(BATCH_URL, { method: 'POST', body: takeBatch(false) });
    }
  }

  function onEvent(event) {
    const json = JSON.stringify(event);
    const bytes = encoder.encode(json).length + 1;
    if (bufferedBytes + bytes > MAX_BATCH_BYTES - ENVELOPE_BYTES) flush();
    buffered.push(json);
    bufferedBytes += bytes;
    // A single event above the limit (a large snapshot) must not wait for
    // pagehide, where only a beacon could carry it.
    if (bufferedBytes > MAX_BATCH_BYTES - ENVELOPE_BYTES) flush();
  }

  function originAndPath(url, base) {
    const parsed = new URL(url, base);
    return parsed.origin + parsed.pathname;
  }

  // rrweb calls `observer` once per recorded document, so same-origin iframes
  // are covered too, each with its own window.
  const networkFlushers = new Set();
  const networkPlugin = {
    name: 'clairvio/network@1',
    observer(emit, win) {
      const COALESCE_MS = 200;
      let finished = [];
      let timer = null;

      function emitFinished() {
        clearTimeout(timer);
        timer = null;
        if (finished.length > 0) emit({ requests: finished });
        finished = [];
      }

      function finish(request, status, error) {
        const { began, ...facts } = request;
        const entry = {
          ...facts,
          status,
          duration_ms: Math.round(performance.now() - began),
        };
        if (error) entry.error = error;
        finished.push(entry);
        timer ??= setTimeout(emitFinished, COALESCE_MS);
      }

      // The query string and the bodies stay in the page: they carry personal
      // data far too often.
      const begin = (kind, method, url) => ({
        kind,
        method: method.toUpperCase(),
        url: originAndPath(url, win.location.href),
        started_at: Date.now(),
        began: performance.now(),
      });

      const originalFetch = win.fetch;
      win.fetch = async function fetch(input, init) {
        const isRequest = input instanceof win.Request;
        const request = begin(
          'fetch',
          init?.method ?? (isRequest ? input.method : 'GET'),
          isRequest ? input.url : String(input),
        );
        try {
          const response = await originalFetch.call(win, input, init);
          finish(request, response.status);
          return response;
        } catch (error) {
          finish(request, 0, error.name === 'AbortError' ? 'abort' : 'network');
          throw error;
        }
      };

      const xhr = win.XMLHttpRequest.prototype;
      const { open: originalOpen, send: originalSend } = xhr;
      const opened = new WeakMap();
      xhr.open = function open(method, url, ...rest) {
        opened.set(this, { method, url: String(url) });
        return originalOpen.call(this, method, url, ...rest);
      };
      xhr.send = function send(body) {
        const { method, url } = opened.get(this);
        const request = begin('xhr', method, url);
        let error;
        this.addEventListener('abort', () => { error = 'abort'; });
        this.addEventListener('error', () => { error = 'network'; });
        this.addEventListener('timeout', () => { error = 'timeout'; });
        this.addEventListener('loadend', () => finish(request, this.status, error));
        return originalSend.call(this, body);
      };

      networkFlushers.add(emitFinished);
      return () => {
        networkFlushers.delete(emitFinished);
        clearTimeout(timer);
        win.fetch = originalFetch;
        xhr.open = originalOpen;
        xhr.send = originalSend;
      };
    },
  };

  const stop = rrweb.record({
    emit: onEvent,
    recordAfter: 'DOMContentLoaded',
    maskAllInputs: true,
    maskTextSelector: '[data-clairvio-mask]',
    blockSelector: '[data-clairvio-block]',
    plugins: [
      rrwebPluginConsoleRecord.getRecordConsolePlugin({
        level: ['log', 'info', 'warn', 'error'],
        lengthThreshold: 1000,
        stringifyOptions: { stringLengthLimit: 1000, numOfKeysLimit: 50, depthOfLimit: 4 },
      }),
      networkPlugin,
    ],
  });

  // Registered after rrweb's own listener, so rrweb already records by now.
  document.addEventListener('DOMContentLoaded', () => {
    rrweb.record.addCustomEvent('clairvio/page', { href: originAndPath(location.href) });
  });

  const timer = setInterval(flush, FLUSH_INTERVAL_MS);
  addEventListener('pagehide', () => {
    for (const flushNetwork of networkFlushers) flushNetwork();
    clearInterval(timer);
    stop();
    navigator.sendBeacon(BATCH_URL, takeBatch(true));
  });
})();
