// Everything that can say something below the masking attribute. Inputs alone
// are not masked by the rules, so that the attribute has to do it.

const SENSITIVE = { inputs: 'sensitive' };

// A masked element with this content, ordinary text beside it, and a later
// full snapshot. What the page does in between is up to `change`.
const masked = (name, description, content, change, before) => ({
  class: 'masked',
  name,
  description,
  rules: SENSITIVE,
  async run(visit) {
    const body = `<p>${visit.keep()}</p><div id="m" class="${visit.keep('class')}" data-clairvio-mask>${content(visit)}</div>`;
    await visit.load(body);
    if (before) await before(visit);
    await visit.start();
    await visit.flush();
    if (change) await change(visit);
    await visit.snapshotWith();
  },
});

const attribute = (selector, name, label = 'changed') => (visit) => visit.run(
  ([where, key, value]) => { document.querySelector(where).setAttribute(key, value); },
  [selector, name, visit.secret(label)],
);

export const cases = [
  masked('masked-text', 'Text of the masked element and of elements below it.',
    (visit) => `${visit.secret('own')}<p>${visit.secret('below')} <b>${visit.secret('deep')}</b></p>`),

  masked('masked-text-with-escapes', 'Text with line breaks, quotes, backslashes, letters beyond ASCII and emoji, which JSON escapes.',
    (visit) => `<pre id="t">${visit.secret('begin')}\n\ttab "quoted" \\ back\\slash ü € 😀 ${visit.secret('end')}</pre><p id="q"></p>`,
    async (visit) => {
      const text = visit.plant(`LEAK "q" \\ é 😀\n${visit.secret('line')}`);
      await visit.run((value) => { document.querySelector('#q').textContent = value; }, text);
      await visit.flush();
      await visit.run((value) => { document.querySelector('#q').firstChild.data = value; },
        visit.plant(`LEAK \u2028 \u0001 </p> ${visit.secret('later')} \\"`));
    }),

  masked('masked-input', 'A text field: its value in snapshots, what is typed, the attribute.',
    (visit) => `<input id="f" value="${visit.secret('given')}">`,
    async (visit) => {
      await visit.clear('#f');
      await visit.type('#f', visit.secret('typed'));
      await visit.flush();
      await attribute('#f', 'value')(visit);
    }),

  masked('masked-textarea', 'A text area: its text in snapshots, what is typed, and a change of its text node.',
    (visit) => `<textarea id="f" rows="3">${visit.secret('given')}</textarea><textarea id="g"></textarea>`,
    async (visit) => {
      await visit.clear('#f');
      await visit.type('#f', visit.secret('typed'));
      await visit.flush();
      await visit.run((value) => { document.querySelector('#g').textContent = value; }, visit.secret('changed'));
    }),

  masked('masked-placeholder', 'Placeholder of a text field.',
    (visit) => `<input id="f" placeholder="${visit.secret('given')}">`, attribute('#f', 'placeholder')),
  masked('masked-title', 'The title attribute.',
    (visit) => `<span id="f" title="${visit.secret('given')}">i</span>`, attribute('#f', 'title')),
  masked('masked-alt', 'Text in the place of an image.',
    (visit) => `<img id="f" src="/photo.png" width="20" height="20" alt="${visit.secret('given')}">`, attribute('#f', 'alt')),
  masked('masked-aria-label', 'The attribute aria-label.',
    (visit) => `<button id="f" aria-label="${visit.secret('given')}">x</button>`, attribute('#f', 'aria-label')),
  masked('masked-aria-description', 'The attributes aria-description, aria-valuetext and aria-placeholder.',
    (visit) => `<div id="f" role="slider" aria-valuenow="1" aria-description="${visit.secret('description')}"
      aria-valuetext="${visit.secret('value')}" aria-placeholder="${visit.secret('placeholder')}">x</div>`,
    attribute('#f', 'aria-description')),
  masked('masked-data-attribute', 'Attributes for scripts: data-*.',
    (visit) => `<div id="f" data-customer="${visit.secret('given')}" data-state='{"name":"${visit.secret('json')}"}'>x</div>`,
    attribute('#f', 'data-customer')),
  masked('masked-unknown-attribute', 'Attributes of the page\'s own, on known elements.',
    (visit) => `<div id="f" customer="${visit.secret('given')}" ng-init="user='${visit.secret('script')}'" onclick="show('${visit.secret('handler')}')">x</div>`,
    attribute('#f', 'customer')),

  masked('masked-options', 'Text, value and label of options and their groups, of a select and of a data list.',
    (visit) => `<select id="s"><optgroup id="g" label="${visit.secret('group')}">
        <option>first</option><option value="${visit.secret('option-value')}">${visit.secret('option-text')}</option>
      </optgroup><option label="${visit.secret('option-label')}" value="l"></option></select>
      <input list="d"><datalist id="d"><option value="${visit.secret('list-value')}">${visit.secret('list-text')}</option></datalist>`,
    async (visit) => {
      await visit.page.locator('#s').selectOption({ index: 1 });
      await visit.flush();
      await attribute('#g', 'label')(visit);
    }),

  masked('masked-contenteditable', 'Typed into an element that can be edited.',
    () => '<div id="f" contenteditable="true">x</div>',
    async (visit) => {
      await visit.type('#f', visit.secret('first'));
      await visit.flush();
      await visit.page.keyboard.press('Enter');
      await visit.page.keyboard.type(visit.secret('second'));
    }),

  masked('masked-comment', 'A comment, and a change of it.',
    (visit) => `<!-- ${visit.secret('given')} --><p>x</p>`,
    (visit) => visit.run((value) => { document.querySelector('#m').firstChild.data = value; }, visit.secret('changed'))),

  masked('masked-style-text', 'Text in a style sheet: generated content, the query of a URL, a custom property, a selector.',
    (visit) => `<style id="s">
      .x::after { content: "${visit.secret('content')}"; }
      .y { background-image: url("/photo.png?q=${visit.secret('url')}"); --name: "${visit.secret('property')}"; }
      [title="${visit.secret('selector')}"] { color: red; }
    </style><p class="x">x</p>`,
    (visit) => visit.run((value) => { document.querySelector('#s').textContent = `.x::after { content: "${value}"; }`; },
      visit.secret('changed'))),

  masked('masked-style-in-parts', 'A style sheet of several text nodes, one of them added later.',
    (visit) => `<style id="s">.x::before { content: "${visit.secret('first')}"; }</style><p class="x">x</p>`,
    (visit) => visit.run((value) => { document.querySelector('#s').append(`.x::after { content: "${value}"; }`); },
      visit.secret('second'))),

  masked('masked-linked-style-sheet', 'A linked style sheet, whose text rrweb records: at the first snapshot and for a link that is added later.',
    (visit) => {
      const sheet = (label) => ({ contentType: 'text/css', body: `.x::after { content: "${visit.secret(label)}"; }` });
      visit.serve('/first.css', sheet('first'));
      visit.serve('/second.css', sheet('second'));
      return '<link rel="stylesheet" href="/first.css"><p class="x">x</p>';
    },
    (visit) => visit.run(() => new Promise((done) => {
      const link = Object.assign(document.createElement('link'), { rel: 'stylesheet', href: '/second.css' });
      link.addEventListener('load', () => setTimeout(done, 100));
      document.querySelector('#m').append(link);
    }))),

  masked('masked-style-attribute', 'A URL in a style attribute: in the snapshot, by attribute and by property.',
    (visit) => `<div id="f" style="width: 20px; height: 20px; background-image: url('/photo.png?token=${visit.secret('given')}')">x</div>`,
    async (visit) => {
      await visit.run((value) => {
        document.querySelector('#f').setAttribute('style', `background: url("/photo.png?token=${value}")`);
      }, visit.secret('attribute'));
      await visit.flush();
      await visit.run((value) => {
        const { style } = document.querySelector('#f');
        style.setProperty('color', 'rgb(10, 20, 30)');
        style.setProperty('border', '1px solid rgb(10, 20, 30)');
        style.setProperty('--name', `"${value}"`);
      }, visit.secret('property'));
    }),

  masked('masked-href', 'Query and fragment of a link.',
    (visit) => `<a id="f" href="/order?q=${visit.secret('query')}#${visit.secret('fragment')}">x</a>`,
    (visit) => visit.run((value) => { document.querySelector('#f').href = `/order?q=${value}`; }, visit.secret('changed'))),
  masked('masked-src', 'Query of an image\'s address.',
    (visit) => `<img id="f" width="20" height="20" src="/photo.png?q=${visit.secret('query')}">`,
    (visit) => visit.run((value) => { document.querySelector('#f').src = `/photo.png?q=${value}`; }, visit.secret('changed'))),
  masked('masked-srcset', 'Queries in a srcset, of an image and of a source.',
    (visit) => `<picture><source id="g" srcset="/a.png?q=${visit.secret('source')} 1x, /b.png?q=${visit.secret('second')} 2x">
      <img id="f" width="20" height="20" src="/photo.png" srcset="/c.png?q=${visit.secret('image')} 320w"></picture>`,
    (visit) => visit.run((value) => { document.querySelector('#f').srcset = `/d.png?q=${value} 2x`; }, visit.secret('changed'))),
  masked('masked-other-urls', 'Queries in the addresses of forms, buttons, videos, objects, quotes and pings.',
    (visit) => `<form action="/send?q=${visit.secret('action')}"><button formaction="/other?q=${visit.secret('formaction')}">x</button></form>
      <video width="20" height="20" poster="/photo.png?q=${visit.secret('poster')}"></video>
      <object width="20" height="20" data="/photo.png?q=${visit.secret('data')}"></object>
      <blockquote cite="/quote?q=${visit.secret('cite')}">x</blockquote>
      <a href="/x" ping="/ping?q=${visit.secret('ping')}">x</a>
      <svg width="20" height="20"><image href="/photo.png?q=${visit.secret('svg')}" xlink:href="/photo.png?q=${visit.secret('xlink')}"/></svg>`),

  masked('masked-urls-without-host', 'Addresses whose path is the content: data:, mailto:, tel:, javascript:.',
    (visit) => `<a id="f" href="mailto:${visit.secret('mail')}@mail.example?subject=${visit.secret('subject')}">x</a>
      <a href="tel:+46${visit.digits('phone', 14)}">x</a><a href="javascript:show('${visit.secret('script')}')">x</a>
      <img width="20" height="20" src="data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg'%3E%3Ctext%3E${visit.secret('drawing')}%3C/text%3E%3C/svg%3E">
      <a href="data:text/plain,${visit.secret('data')}">x</a>`,
    (visit) => visit.run((value) => { document.querySelector('#f').href = `data:text/html,${value}`; }, visit.secret('changed'))),

  masked('masked-srcdoc', 'A frame with its document in the attribute.',
    (visit) => `<iframe id="f" srcdoc="<p>${visit.secret('given')}</p>"></iframe>`,
    async (visit) => {
      await visit.run((value) => { document.querySelector('#f').srcdoc = `<p title='${value}'>x</p>`; }, visit.secret('changed'));
      await visit.settle();
    }),

  masked('masked-svg', 'Text, title and description in a drawing.',
    (visit) => `<svg width="300" height="40" aria-label="${visit.secret('label')}"><title>${visit.secret('title')}</title>
      <desc>${visit.secret('desc')}</desc><text id="t" x="4" y="20">${visit.secret('text')}<tspan>${visit.secret('tspan')}</tspan></text>
      <foreignObject width="100" height="20"><p>${visit.secret('foreign')}</p></foreignObject></svg>`,
    (visit) => visit.run((value) => { document.querySelector('#t').firstChild.data = value; }, visit.secret('changed'))),

  masked('masked-frame', 'A frame of the same origin: text and attributes, text changed and added inside.',
    (visit) => {
      visit.serveFrame('/frame', `<p id="t" title="${visit.secret('title')}">${visit.secret('text')}</p>
        <script>addEventListener('message', ({ data }) => {
          document.querySelector('#t').firstChild.data = data.text;
          document.body.append(Object.assign(document.createElement('p'), { textContent: data.added }));
        })</script>`);
      return '<iframe id="f" src="/frame"></iframe>';
    },
    async (visit) => {
      await visit.run((data) => { document.querySelector('#f').contentWindow.postMessage(data); },
        { text: visit.secret('changed'), added: visit.secret('added') });
      await visit.settle();
    }),

  masked('masked-frame-later', 'A frame that is added after the snapshot, and one that goes to another page.',
    (visit) => {
      visit.serveFrame('/first', '<p>first</p>');
      visit.serveFrame('/second', `<p>${visit.secret('second')}</p>`);
      visit.serveFrame('/added', `<p>${visit.secret('added')}</p><input value="${visit.secret('value')}">`);
      return '<iframe id="f" src="/first"></iframe>';
    },
    async (visit) => {
      await visit.run(() => new Promise((done) => {
        const frame = document.querySelector('#f');
        frame.addEventListener('load', () => setTimeout(done, 100), { once: true });
        frame.src = '/second';
      }));
      await visit.flush();
      await visit.run(() => new Promise((done) => {
        const frame = document.createElement('iframe');
        frame.addEventListener('load', () => setTimeout(done, 100), { once: true });
        frame.src = '/added';
        document.querySelector('#m').append(frame);
      }));
    }),

  masked('masked-frame-in-frame', 'A frame in a frame, the inner one changed later.',
    (visit) => {
      visit.serveFrame('/inner', `<p id="t">${visit.secret('inner')}</p>`);
      visit.serveFrame('/outer', '<iframe src="/inner"></iframe>');
      return '<iframe id="f" src="/outer"></iframe>';
    },
    (visit) => visit.run((value) => {
      const outer = document.querySelector('#f').contentDocument;
      outer.querySelector('iframe').contentDocument.querySelector('#t').textContent = value;
    }, visit.secret('changed')),
    // rrweb attaches frames once they are loaded.
    (visit) => visit.settle()),

  masked('masked-frame-elsewhere', 'The address of a frame of another origin.',
    (visit) => `<iframe id="f" src="http://elsewhere.test/widget?q=${visit.secret('query')}"></iframe>`),

  masked('masked-shadow-root', 'An open shadow root: text, attributes and values, changed later.',
    () => '<div id="h"></div>',
    (visit) => visit.run(([text, value]) => {
      const root = document.querySelector('#h').shadowRoot;
      root.querySelector('#t').firstChild.data = text;
      root.append(Object.assign(document.createElement('p'), { title: value }));
    }, [visit.secret('changed'), visit.secret('added')]),
    (visit) => visit.run(([text, title, value]) => {
      document.querySelector('#h').attachShadow({ mode: 'open' }).innerHTML = `<p id="t" title="${title}">${text}</p><input value="${value}">`;
    }, [visit.secret('text'), visit.secret('title'), visit.secret('value')])),

  masked('masked-shadow-root-later', 'A shadow root that is attached after the snapshot, to an old element and to a new one.',
    () => '<div id="h"></div>',
    async (visit) => {
      await visit.run((text) => {
        document.querySelector('#h').attachShadow({ mode: 'open' }).innerHTML = `<p>${text}</p>`;
      }, visit.secret('old'));
      await visit.flush();
      await visit.run((text) => {
        const host = document.createElement('div');
        host.attachShadow({ mode: 'open' }).innerHTML = `<p>${text}</p>`;
        document.querySelector('#m').append(host);
      }, visit.secret('new'));
    }),

  masked('masked-slot', 'Text in a slot, and what stands in an empty one.',
    (visit) => `<div id="h"><span slot="name">${visit.secret('slotted')}</span></div>`,
    (visit) => visit.run((value) => { document.querySelector('#h span').textContent = value; }, visit.secret('changed')),
    (visit) => visit.run((text) => {
      document.querySelector('#h').attachShadow({ mode: 'open' }).innerHTML =
        `<p><slot name="name"></slot><slot name="other">${text}</slot></p>`;
    }, visit.secret('fallback'))),

  masked('masked-table', 'Caption, head, cells and their attributes.',
    (visit) => `<table summary="${visit.secret('summary')}"><caption>${visit.secret('caption')}</caption>
      <thead><tr><th abbr="${visit.secret('abbr')}">${visit.secret('head')}</th></tr></thead>
      <tbody id="b"><tr><td>${visit.secret('cell')}</td></tr></tbody></table>`,
    (visit) => visit.run((value) => { document.querySelector('#b').insertRow().insertCell().textContent = value; }, visit.secret('row'))),

  masked('masked-meta', 'Content of meta elements in the body.',
    (visit) => `<div itemscope><meta id="f" itemprop="name" content="${visit.secret('given')}"><link itemprop="url" href="/x?q=${visit.secret('link')}"></div>`,
    attribute('#f', 'content')),

  masked('masked-noscript', 'What is shown without scripts is recorded as a text.',
    (visit) => `<noscript><p title="${visit.secret('title')}">${visit.secret('text')}</p></noscript>`),

  masked('masked-template', 'Children of a template. Its content is not recorded; nodes that a script appends to the element itself are.',
    () => '<template id="t"></template>',
    async (visit) => {
      await visit.run((text) => { document.querySelector('#t').appendChild(document.createTextNode(text)); }, visit.secret('text'));
      await visit.flush();
      await visit.run(([text, title]) => {
        const child = Object.assign(document.createElement('p'), { textContent: text, title });
        document.querySelector('#t').appendChild(child);
      }, [visit.secret('child'), visit.secret('title')]);
    }),

  masked('masked-button', 'Text of a button; value of buttons that are inputs; alt of an image that is one.',
    (visit) => `<button id="b" value="${visit.secret('value')}">${visit.secret('text')}</button>
      <input type="button" id="f" value="${visit.secret('button')}"><input type="submit" value="${visit.secret('submit')}">
      <input type="reset" value="${visit.secret('reset')}"><input type="image" src="/photo.png" alt="${visit.secret('image')}">`,
    attribute('#f', 'value')),

  masked('masked-radio-and-checkbox', 'Values of radio buttons and check boxes, in snapshots and when they are clicked.',
    (visit) => `<label><input type="radio" name="r" id="a" value="${visit.secret('first')}"> one</label>
      <label><input type="radio" name="r" id="b" value="${visit.secret('second')}" checked> two</label>
      <label><input type="checkbox" id="c" value="${visit.secret('box')}"> three</label>`,
    async (visit) => {
      await visit.page.locator('#a').click();
      await visit.flush();
      await visit.page.locator('#c').click();
    }),

  masked('masked-details', 'Summary and content of a details element, opened later.',
    (visit) => `<details id="d"><summary>${visit.secret('summary')}</summary><p>${visit.secret('content')}</p></details>`,
    (visit) => visit.run(() => { document.querySelector('#d').open = true; })),

  masked('masked-custom-element', 'Attributes of a custom element, and what it draws in its shadow root.',
    (visit) => `<user-card id="f" full-name="${visit.secret('given')}"></user-card>`,
    attribute('#f', 'full-name'),
    (visit) => visit.run(() => customElements.define('user-card', class extends HTMLElement {
      static observedAttributes = ['full-name'];
      connectedCallback() { this.attachShadow({ mode: 'open' }).append(this.getAttribute('full-name')); }
      attributeChangedCallback(name, old, value) { if (this.shadowRoot) this.shadowRoot.textContent = `Hello ${value}`; }
    }))),

  masked('masked-canvas', 'Text that is drawn on a canvas: the calls are recorded.',
    () => '<canvas id="c" width="300" height="60"></canvas>',
    async (visit) => {
      await visit.run(([text, outline]) => {
        const context = document.querySelector('#c').getContext('2d');
        context.font = '12px sans-serif';
        context.fillText(text, 4, 20);
        context.strokeText(outline, 4, 40);
      }, [visit.secret('fill'), visit.secret('stroke')]);
      await visit.page.waitForTimeout(200);
    }),

  masked('masked-canvas-picture', 'A canvas that shows a text: snapshots have its picture, of which a part is the secret.',
    () => '<canvas id="c" width="60" height="16"></canvas>',
    undefined,
    async (visit) => {
      const picture = await visit.run((text) => {
        const canvas = document.querySelector('#c');
        canvas.getContext('2d').fillText(text, 2, 12);
        return canvas.toDataURL();
      }, 'Ada L. 4711');
      visit.plant(picture.slice(-100, -40));
    }),

  masked('masked-adopted-style-sheet', 'A style sheet adopted by a shadow root: its rules, a rule added, all replaced.',
    () => '<div id="h"></div>',
    async (visit) => {
      await visit.run((text) => { window.sheet.insertRule(`p::before { content: "${text}"; }`); }, visit.secret('inserted'));
      await visit.flush();
      await visit.run((text) => { window.sheet.replaceSync(`p::after { content: "${text}"; }`); }, visit.secret('replaced'));
    },
    (visit) => visit.run((text) => {
      const root = document.querySelector('#h').attachShadow({ mode: 'open' });
      root.innerHTML = '<p>x</p>';
      window.sheet = new CSSStyleSheet();
      window.sheet.replaceSync(`p::after { content: "${text}"; }`);
      root.adoptedStyleSheets = [window.sheet];
    }, visit.secret('given'))),

  masked('masked-inserted-rule', 'Rules that scripts put into a style element: added, nested, a property of a rule set.',
    () => '<style id="s">@media screen { .y { color: red; } } .z { color: green; }</style><p class="x y z">x</p>',
    async (visit) => {
      await visit.run(([text, nested]) => {
        const { sheet } = document.querySelector('#s');
        sheet.insertRule(`.x::after { content: "${text}"; }`, 0);
        sheet.cssRules[1].insertRule(`.x::before { content: "${nested}"; }`, 0);
      }, [visit.secret('rule'), visit.secret('nested')]);
      await visit.flush();
      await visit.run((text) => {
        const { sheet } = document.querySelector('#s');
        sheet.cssRules[2].style.setProperty('--name', `"${text}"`);
        sheet.cssRules[2].style.setProperty('background-image', `url("/photo.png?q=${text}")`);
      }, visit.secret('property'));
    }),

  {
    class: 'masked',
    name: 'masked-own-attributes',
    description: 'The attribute stands on the field or the image itself, empty, with "true" and with "false": its presence counts.',
    rules: SENSITIVE,
    async run(visit) {
      await visit.open(`<p>${visit.keep()}</p>
        <input id="f" data-clairvio-mask value="${visit.secret('value')}" placeholder="${visit.secret('placeholder')}">
        <img data-clairvio-mask="true" src="/photo.png?q=${visit.secret('src')}" width="20" height="20" alt="${visit.secret('alt')}">
        <p data-clairvio-mask="false" title="${visit.secret('title')}">${visit.secret('text')}</p>
        <textarea data-clairvio-mask>${visit.secret('area')}</textarea>`);
      await visit.flush();
      await visit.clear('#f');
      await visit.type('#f', visit.secret('typed'));
      await visit.snapshotWith();
    },
  },
  {
    class: 'masked',
    name: 'masked-whole-page',
    description: 'The attribute stands on the root element: title and meta elements in the head are below it too.',
    rules: SENSITIVE,
    async run(visit) {
      await visit.open(`<p class="${visit.keep('class')}" id="t">${visit.secret('text')}</p>`, {
        html: ' data-clairvio-mask',
        head: `<meta name="description" content="${visit.secret('meta')}">`,
      });
      await visit.flush();
      await visit.run((value) => { document.title = value; }, visit.secret('title'));
      await visit.flush();
      await visit.run((value) => { document.querySelector('#t').textContent = value; }, visit.secret('changed'));
      await visit.snapshot();
      await visit.flush();
    },
  },
  {
    class: 'masked',
    name: 'masked-inside-shadow-root',
    description: 'The masked element is in a shadow root, an ordinary text beside it.',
    rules: SENSITIVE,
    async run(visit) {
      await visit.load('<div id="h"></div>');
      await visit.run(([kept, text]) => {
        document.querySelector('#h').attachShadow({ mode: 'open' }).innerHTML =
          `<p>${kept}</p><div id="m" data-clairvio-mask><p>${text}</p></div>`;
      }, [visit.keep(), visit.secret('text')]);
      await visit.start();
      await visit.flush();
      await visit.run((text) => {
        document.querySelector('#h').shadowRoot.querySelector('#m p').firstChild.data = text;
      }, visit.secret('changed'));
      await visit.snapshotWith();
    },
  },
  {
    class: 'masked',
    name: 'masked-inside-frame',
    description: 'The masked element is in a frame, an ordinary text beside it.',
    rules: SENSITIVE,
    async run(visit) {
      visit.serveFrame('/frame', `<p>${visit.keep()}</p><div id="m" data-clairvio-mask><p>${visit.secret('text')}</p></div>`);
      await visit.open('<iframe id="f" src="/frame"></iframe>');
      await visit.flush();
      await visit.run((text) => {
        document.querySelector('#f').contentDocument.querySelector('#m p').textContent = text;
      }, visit.secret('changed'));
      await visit.snapshotWith();
    },
  },
  {
    class: 'masked',
    name: 'masked-beside-open-page',
    description: 'Much that needs no masking beside a masked element: attributes, values, styles, frames, shadow roots, drawings.',
    rules: SENSITIVE,
    async run(visit) {
      visit.serveFrame('/frame', `<p>${visit.keep('frame')}</p>`);
      await visit.load(`<!-- ${visit.keep('comment')} --><p title="${visit.keep('title')}" data-step="${visit.keep('data')}">${visit.keep('text')}</p>
        <img src="/photo.png?size=${visit.keep('query')}" width="20" height="20" alt="${visit.keep('alt')}">
        <input id="f" placeholder="${visit.keep('placeholder')}" value="${visit.keep('value')}"><select><option>${visit.keep('option')}</option></select>
        <textarea>${visit.keep('area')}</textarea><style>.x::after { content: "${visit.keep('css')}"; }</style>
        <svg width="200" height="20"><text y="12">${visit.keep('svg')}</text></svg><iframe src="/frame"></iframe><div id="h"></div>
        <div id="m" data-clairvio-mask><p>${visit.secret('text')}</p></div><p id="t">x</p>`);
      await visit.run((text) => { document.querySelector('#h').attachShadow({ mode: 'open' }).textContent = text; }, visit.keep('shadow'));
      await visit.start();
      await visit.flush();
      await visit.run(([open, hidden]) => {
        document.querySelector('#t').firstChild.data = open;
        document.querySelector('#m p').firstChild.data = hidden;
      }, [visit.keep('changed'), visit.secret('changed')]);
      await visit.flush();
      await visit.type('#f', visit.keep('typed'));
    },
  },
];
