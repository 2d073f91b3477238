// Runs in the page of the replayer, after rrweb in the same document. It plays
// one stream to given moments and says what stands there.
(() => {
  const SETTLE_MS = 120;
  const CANVAS_MUTATION = 9;
  const BLOCK_ATTRIBUTE = '[data-clairvio-block]';
  // In these a box has its size from what stands beside it.
  const SIZED_BY_CONTENT = /^(inline|table|flex|grid)|-(table|flex|grid|block)$|^none$/;

  let replayer;
  let warnings;
  let absent;

  const settle = () => new Promise((done) => {
    requestAnimationFrame(() => setTimeout(done, SETTLE_MS));
  });
  const asText = (values) => values.map((value) => (typeof value === 'string' ? value : '')).join(' ').trim();

  const ownText = (element) => [
    ...[...element.childNodes].filter((node) => node.nodeType !== Node.ELEMENT_NODE).map((node) => node.nodeValue),
    ...[...element.attributes].map((attribute) => `${attribute.name}=${attribute.value}`),
    element.value ?? '',
  ].join('\n');

  // All elements in document order, those of frames and shadow roots where
  // their hosts are.
  function walk(document, blockSelector) {
    const mirror = replayer.getMirror();
    const elements = [];
    const counts = { nodes: 0, elements: 0, texts: 0, frames: 0, empty_frames: 0, shadow_roots: 0 };

    function visit(node, parent) {
      counts.nodes += 1;
      if (node.nodeType === Node.TEXT_NODE) counts.texts += 1;
      let inside = parent;
      if (node.nodeType === Node.ELEMENT_NODE) {
        counts.elements += 1;
        const { width, height } = node.getBoundingClientRect();
        inside = elements.length;
        elements.push({
          id: mirror.getId(node),
          tag: node.localName,
          parent,
          width,
          height,
          blocked: node.matches(blockSelector),
          sized_by_content: SIZED_BY_CONTENT.test(getComputedStyle(node).display) || getComputedStyle(node).float !== 'none',
          text: ownText(node),
        });
        if (node.shadowRoot) {
          counts.shadow_roots += 1;
          for (const child of node.shadowRoot.childNodes) visit(child, inside);
        }
        if (node.localName === 'iframe' && node.contentDocument) {
          counts.frames += 1;
          if (!node.contentDocument.body?.hasChildNodes()) counts.empty_frames += 1;
          for (const child of node.contentDocument.childNodes) visit(child, inside);
        }
      }
      for (const child of node.childNodes) visit(child, inside);
    }

    for (const node of document.childNodes) visit(node, null);
    return { counts, elements };
  }

  window.player = {
    async load(events) {
      warnings = [];
      absent = 0;
      replayer = new rrweb.Replayer(events, {
        root: document.body,
        showWarning: true,
        showDebug: true,
        mouseTail: false,
        triggerFocus: false,
        pauseAnimation: true,
        UNSAFE_replayCanvas: events.some(({ type, data }) => type === 3 && data.source === CANVAS_MUTATION),
        logger: {
          warn(...values) { warnings.push(asText(values)); },
          // A click on a node that has just gone is no fault, so rrweb only
          // mentions it.
          log(...values) { if (/not found/.test(asText(values))) absent += 1; },
        },
      });
      await settle();
    },
    // Everything up to `offset` milliseconds, at once.
    async look(offset, blockSelectors) {
      replayer.pause(offset);
      await settle();
      const { contentDocument } = replayer.iframe;
      const found = walk(contentDocument, [BLOCK_ATTRIBUTE, ...blockSelectors].join(', '));
      return { ...found, filled: Boolean(contentDocument.body?.hasChildNodes()) };
    },
    close() {
      replayer.destroy();
      return { warnings, absent };
    },
  };
})();
