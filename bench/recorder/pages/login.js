const password = byId('password');
byId('show-password').addEventListener('click', (event) => {
  const hidden = password.type === 'password';
  password.type = hidden ? 'text' : 'password';
  event.target.textContent = hidden ? 'Hide' : 'Show';
});

byId('login-form').addEventListener('submit', async (event) => {
  event.preventDefault();
  const form = new FormData(event.target);
  const button = byId('login-submit');
  button.disabled = true;
  button.textContent = 'Signing in…';
  const response = await postJson('/api/login', {
    email: form.get('email'),
    password: form.get('password'),
  });
  const answer = await response.json();
  if (response.ok) {
    location.assign(answer.next);
    return;
  }
  console.warn('sign-in refused', response.status);
  byId('login-error').textContent = answer.message;
  byId('login-error').hidden = false;
  button.disabled = false;
  button.textContent = 'Sign in';
});
