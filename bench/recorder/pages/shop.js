const PAGE_SIZE = 24;
const filters = byId('filters');
const grid = byId('products');
const cart = new Map();
const known = new Map();
let offset = 0;
let total = Infinity;
let loading = false;
// Answers to an older filter must not end up below a newer one.
let generation = 0;

async function loadMore() {
  if (loading || offset >= total) return;
  loading = true;
  byId('loading').hidden = false;
  const mine = generation;
  const query = new URLSearchParams(new FormData(filters));
  query.set('offset', offset);
  query.set('limit', PAGE_SIZE);
  const page = await getJson(`/api/products?${query}`);
  if (mine !== generation) return;
  total = page.total;
  offset += page.items.length;
  for (const product of page.items) known.set(product.id, product);
  grid.append(...page.items.map(productCard));
  byId('shown').textContent = offset;
  byId('total').textContent = total;
  byId('loading').hidden = offset < total;
  byId('loading').textContent = offset < total ? 'Loading more…' : 'That is all.';
  loading = false;
}

function restart() {
  generation += 1;
  offset = 0;
  total = Infinity;
  loading = false;
  grid.replaceChildren();
  loadMore();
}

let settle;
filters.addEventListener('input', () => {
  byId('max-value').textContent = filters.max.value;
  clearTimeout(settle);
  settle = setTimeout(restart, 300);
});
filters.addEventListener('submit', (event) => event.preventDefault());

new IntersectionObserver((entries) => {
  if (entries.some((entry) => entry.isIntersecting)) loadMore();
}, { rootMargin: '400px' }).observe(byId('loading'));
// A short page leaves the marker in view, which the observer reports only once.
addEventListener('scroll', () => {
  if (innerHeight + scrollY > document.documentElement.scrollHeight - 400) loadMore();
}, { passive: true });

function showCart() {
  byId('cart-lines').replaceChildren(...[...cart].map(([id, pieces]) => {
    const product = known.get(id);
    return el('li', { class: 'row spread' },
      el('span', {}, `${pieces} × ${product.title}`),
      el('span', {}, euros(product.price * pieces)),
      el('button', { class: 'button quiet', 'data-remove': id, 'aria-label': 'Remove' }, '×'));
  }));
  const sum = [...cart].reduce((all, [id, pieces]) => all + known.get(id).price * pieces, 0);
  byId('cart-total').textContent = euros(sum);
  byId('cart-count').textContent = [...cart.values()].reduce((all, pieces) => all + pieces, 0);
}

grid.addEventListener('click', async (event) => {
  const id = Number(event.target.dataset.add);
  if (!id) return;
  event.target.textContent = 'Added ✓';
  event.target.classList.add('added');
  cart.set(id, (cart.get(id) ?? 0) + 1);
  showCart();
  await postJson('/api/cart', { id, pieces: cart.get(id) });
});
byId('cart-lines').addEventListener('click', (event) => {
  const id = Number(event.target.dataset.remove);
  if (id && cart.delete(id)) showCart();
});
byId('cart-open').addEventListener('click', () => byId('cart').classList.add('open'));
byId('cart-close').addEventListener('click', () => byId('cart').classList.remove('open'));
byId('cart-checkout').addEventListener('click', () => location.assign('/login'));

async function updateStock() {
  for (const { id, stock } of await getJson('/api/stock')) {
    const label = grid.querySelector(`[data-id="${id}"] .stock`);
    if (label) {
      label.textContent = stock > 0 ? `${stock} in stock` : 'sold out';
      label.classList.toggle('out', stock === 0);
    }
  }
}
setInterval(updateStock, 4000);

loadMore();
