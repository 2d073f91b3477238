// Everything the recorded person types that must never leave the browser.
// All of it is invented. The sessions type these texts and the check looks for
// them in every recording, so a text is only safe if it stands here.

export const EMAIL = 'ada.lindqvist@mail.example';
export const PASSWORD = 'Kestrel-7-orbits!';

// Typed first, to record a failed login.
export const MISTYPED_PASSWORD = 'Kestrel-7-orbit$';

export const PERSON = {
  name: 'Ada Lindqvist',
  phone: '+46 70 555 01 42',
  orderNumber: 'HO-4471-90233',
  passphrase: 'blue-heron-1961',
  born: '1984-03-17',
  message:
    'The oak sideboard came with a deep scratch along the left door and one of the brass '
    + 'handles does not sit straight. I kept the packaging. Could you send a new door, or '
    + 'should I return the whole piece? Ring me after four, my neighbour Mrs Oduya lets '
    + 'your driver in otherwise.',
  chatQuestion: 'Can I still change the address of my delivery on Thursday?',
  secondMessage:
    'Two chairs of the set of four are missing from the delivery that came this morning.',
  importNote: 'Stock sheet from the Malmo warehouse, second attempt',
};

export const PASSWORDS = [PASSWORD, MISTYPED_PASSWORD, PERSON.passphrase];

// Sentence by sentence, so that a part of a message is found too.
export const PRIVATE_TEXTS = [...PASSWORDS, EMAIL, ...Object.values(PERSON)]
  .flatMap((text) => text.split(/(?<=[.?]) /));
