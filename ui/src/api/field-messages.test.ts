import { expect, test } from 'vitest';
import { fieldMessages } from './field-messages';

test('a message belongs to the setting that it starts with', () => {
  expect(fieldMessages(['lora_r: too large', 'dataset.source: gone', 'No CUDA GPU here: slow'], ['lora_r'])).toEqual([
    { field: 'lora_r', text: 'too large' },
    { field: 'dataset', text: 'gone' },
    { field: null, text: 'No CUDA GPU here: slow' },
  ]);
});
