const lines = document.getElementById('lines');
const ANSWERS = [
  'Let me look that up for you, one moment.',
  'You can change it until the evening before. I have opened the order for you.',
  'Anything else?',
];

function say(text, mine) {
  const line = document.createElement('li');
  line.textContent = text;
  // What the person asks is as private as any other input.
  if (mine) {
    line.className = 'mine';
    line.setAttribute('data-clairvio-mask', '');
  }
  lines.append(line);
  line.scrollIntoView({ block: 'nearest' });
}

document.getElementById('chat-form').addEventListener('submit', async (event) => {
  event.preventDefault();
  const { question } = event.target;
  say(question.value, true);
  question.value = '';
  const response = await fetch('/api/notifications');
  console.info('chat connected', response.status);
  ANSWERS.forEach((answer, i) => setTimeout(say, 1500 * (i + 1), answer, false));
});
