const form = byId('ticket-form');

form.message.addEventListener('input', () => {
  byId('message-length').textContent = form.message.value.length;
});
form.content.addEventListener('input', () => {
  byId('content-value').textContent = form.content.value;
});

function showMissing() {
  const fields = [...form.querySelectorAll('[required]')];
  for (const field of fields) field.classList.toggle('invalid', !field.checkValidity());
  const missing = fields.filter((field) => !field.checkValidity());
  byId('ticket-error').hidden = missing.length === 0;
  byId('ticket-error').textContent = `Please fill in ${missing.length} more field(s).`;
  return missing.length > 0;
}

form.addEventListener('submit', async (event) => {
  event.preventDefault();
  if (showMissing()) {
    console.warn('ticket form incomplete');
    return;
  }
  byId('ticket-submit').disabled = true;
  const values = Object.fromEntries(new FormData(form));
  const response = await postJson('/api/tickets', values);
  const { id } = await response.json();
  byId('ticket-id').textContent = id;
  for (const name of ['name', 'email', 'phone', 'order', 'message']) {
    byId('ticket-summary').append(el('dt', {}, name), el('dd', {}, values[name] || '–'));
  }
  form.hidden = true;
  byId('ticket-done').hidden = false;
  scrollTo({ top: 0 });
});
