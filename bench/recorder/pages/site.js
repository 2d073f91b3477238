// Helpers all pages share, and the header and footer.

function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS('http://www.w3.org/2000/svg', tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

const byId = (id) => document.getElementById(id);
const euros = (amount) => `${amount.toFixed(2)} €`;

async function getJson(url, options) {
  const response = await fetch(url, options);
  if (!response.ok) throw new Error(`${url} answered ${response.status}`);
  return response.json();
}

function postJson(url, value) {
  return fetch(url, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify(value),
  });
}

const TINTS = ['#b7793f', '#8a5a33', '#5b4636', '#d9c7a8', '#3d3a38', '#c99f6b', '#cfc1a5', '#6f7d5c'];

// A drawing of the piece, so that recordings show something without images.
function productArt(product) {
  const tint = TINTS[product.id % TINTS.length];
  const drawing = svg('svg', { viewBox: '0 0 200 150', class: 'art', role: 'img', 'aria-label': product.title });
  drawing.append(svg('rect', { width: 200, height: 150, fill: '#f2ede4' }));
  drawing.append(svg('ellipse', { cx: 100, cy: 132, rx: 78, ry: 7, fill: '#ddd4c4' }));
  const high = 40 + (product.id * 37) % 50;
  const wide = 60 + (product.id * 53) % 80;
  const left = 100 - wide / 2;
  drawing.append(svg('rect', { x: left, y: 125 - high, width: wide, height: high - 14, rx: 4, fill: tint }));
  for (let i = 0; i < 2 + (product.id % 4); i += 1) {
    drawing.append(svg('line', {
      x1: left + 4, x2: left + wide - 4, y1: 131 - high + i * 9, y2: 131 - high + i * 9,
      stroke: '#00000022', 'stroke-width': 1.5,
    }));
  }
  for (const x of [left + 5, left + wide - 11]) {
    drawing.append(svg('rect', { x, y: 110, width: 6, height: 22, fill: tint }));
  }
  return drawing;
}

function productCard(product) {
  const card = el('article', { class: 'product', 'data-id': product.id },
    productArt(product),
    el('div', { class: 'product-body' },
      el('h3', {}, el('a', { href: `/product?id=${product.id}` }, product.title)),
      el('p', { class: 'hint' }, `${product.finish}, ${product.size}`),
      el('p', { class: 'product-text' }, product.text),
      el('ul', { class: 'swatches', 'aria-label': 'Finishes' },
        ...[0, 1, 2, 3].map((step) => el('li', {
          class: 'swatch',
          style: `background-color: ${TINTS[(product.id + step) % TINTS.length]}`,
        }))),
      el('ul', { class: 'badges' },
        el('li', {}, product.sku),
        el('li', {}, `${product.delivery_days} days`),
        el('li', {}, product.price > 400 ? 'Free delivery' : 'Delivery 19 €')),
      el('p', { class: 'stars', title: `${product.rating} of 5` },
        '★'.repeat(Math.round(product.rating)).padEnd(5, '☆'),
        el('span', { class: 'hint' }, ` ${product.reviews} reviews`)),
      el('p', { class: 'row spread' },
        el('strong', { class: 'price' }, euros(product.price)),
        el('span', { class: product.stock > 0 ? 'stock' : 'stock out' },
          product.stock > 0 ? `${product.stock} in stock` : `in ${product.delivery_days} days`)),
      el('button', { class: 'button add', 'data-add': product.id }, 'Add to cart')));
  return card;
}

byId('site-header').append(
  el('a', { class: 'brand', href: '/shop' }, 'Harbor & Oak'),
  el('nav', {},
    el('a', { href: '/shop' }, 'Shop'),
    el('a', { href: '/support', target: '_blank', id: 'nav-support' }, 'Support'),
    el('a', { href: '/help', id: 'nav-help' }, 'Help'),
    el('a', { href: '/account', id: 'nav-account' }, 'Account')),
  el('button', { class: 'button quiet', id: 'cart-open' }, 'Cart (', el('span', { id: 'cart-count' }, '0'), ')'));
byId('site-footer').append(
  el('p', {}, 'Harbor & Oak, furniture from the coast. This shop is invented.'),
  el('p', {}, 'Quay 4, Harbour Town · Open Monday to Saturday'));
