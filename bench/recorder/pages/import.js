const log = byId('log');

function note(text, kind = 'ok') {
  log.append(el('li', { class: kind }, `${new Date().toLocaleTimeString('en-GB')} ${text}`));
  log.scrollTop = log.scrollHeight;
}

byId('load-template').addEventListener('click', async () => {
  const template = await getJson('/api/import/template');
  console.info('template loaded', template);
  note(`Template with ${template.columns.length} columns and ${template.rows} rows`);
});

// The mapping endpoint does not exist yet, as happens in previews.
byId('map-columns').addEventListener('click', async () => {
  const response = await fetch('/api/import/mapping?profile=default');
  if (!response.ok) {
    console.error('column mapping failed', { status: response.status, profile: 'default' });
    note('Column mapping is not available', 'bad');
  }
});

byId('validate').addEventListener('click', () => {
  note('Validating, this takes a while…');
  const request = new XMLHttpRequest();
  request.open('POST', '/api/import/validate');
  request.onload = () => {
    const { checked, invalid } = JSON.parse(request.responseText);
    for (const row of invalid) console.warn(`row ${row}: price is not a number`);
    note(`${checked} rows checked, ${invalid.length} left out`, 'warn');
    // Row 97 has no second cell, so this throws as the real importer did.
    const cells = [['HO-CH-1097']];
    const price = cells[0][1].trim();
    note(`Row 97 costs ${price}`);
  };
  request.send(JSON.stringify({ rows: 118 }));
});

byId('commit').addEventListener('click', async () => {
  const response = await postJson('/api/import/commit', { rows: 115 });
  if (response.status >= 500) {
    note('The shop refused the rows', 'bad');
    throw new Error(`import not written: server answered ${response.status}`);
  }
});

let reportRequest;
byId('report').addEventListener('click', async () => {
  reportRequest = new AbortController();
  byId('cancel-report').disabled = false;
  note('Fetching report…');
  try {
    await fetch('/api/import/report', { signal: reportRequest.signal });
  } catch (error) {
    console.warn('report not fetched:', error.name);
    note('Report cancelled', 'warn');
  }
  byId('cancel-report').disabled = true;
});
byId('cancel-report').addEventListener('click', () => reportRequest.abort());
