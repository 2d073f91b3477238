async function show() {
  const { product, related } = await getJson(`/api/product${location.search}`);
  document.title = `${product.title} – Harbor & Oak`;
  byId('crumb').textContent = product.title;
  byId('product').append(
    productArt(product),
    el('div', {},
      el('h1', {}, product.title),
      el('p', { class: 'lead' }, product.text),
      el('dl', { class: 'facts' },
        el('dt', {}, 'Article'), el('dd', {}, product.sku),
        el('dt', {}, 'Finish'), el('dd', {}, product.finish),
        el('dt', {}, 'Size'), el('dd', {}, product.size),
        el('dt', {}, 'Delivery'), el('dd', {}, `${product.delivery_days} days`)),
      el('p', { class: 'price large' }, euros(product.price)),
      el('button', { class: 'button', id: 'add-piece' }, 'Add to cart')));
  byId('related').append(...related.map(productCard));
  byId('add-piece').addEventListener('click', async (event) => {
    event.target.textContent = 'Added ✓';
    byId('cart-count').textContent = '1';
    await postJson('/api/cart', { id: product.id, pieces: 1 });
  });
}
show();
