let lookedUp = Date.now();

async function lookUpMessages() {
  const { unread } = await getJson('/api/notifications');
  byId('unread').textContent = unread;
  lookedUp = Date.now();
}

function showAge() {
  const seconds = Math.round((Date.now() - lookedUp) / 1000);
  byId('looked-up').textContent = seconds < 5 ? 'just now' : `${seconds} seconds ago`;
}

async function showOrders() {
  const { orders } = await getJson('/api/orders');
  byId('account-orders').append(...orders.slice(0, 8).map((order) => el('tr', {},
    el('td', { 'data-clairvio-mask': '' }, order.number),
    el('td', {}, order.item),
    el('td', {}, el('span', { class: `state ${order.state}` }, order.state)),
    el('td', { class: 'number' }, euros(order.total)))));
}

byId('more-orders').addEventListener('click', () => {
  byId('delivery-notes').hidden = !byId('delivery-notes').hidden;
});

showOrders();
lookUpMessages();
setInterval(lookUpMessages, 15000);
setInterval(showAge, 5000);
