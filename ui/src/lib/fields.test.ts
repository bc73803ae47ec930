import { expect, test } from 'vitest';
import { ESSENTIAL, FIELDS, groups, parse, rangeOf, type Field } from './fields';

const field = (name: string): Field => FIELDS.get(name) as Field;

test('every setting of the API is in the form once', () => {
  const inForm = [...ESSENTIAL, ...groups().flatMap((group) => group.fields.map((each) => each.name))];
  expect(new Set(inForm).size).toBe(inForm.length);
  expect([...inForm, 'base_model', 'output_name', 'hf_token'].sort()).toEqual([...FIELDS.keys()].sort());
});

test('what is typed is checked against the range of the schema', () => {
  expect(parse(field('learning_rate'), ' 5e-6 ')).toBe(5e-6);
  expect(parse(field('learning_rate'), '')).toBeUndefined();
  expect(() => parse(field('learning_rate'), '0')).toThrow('above 0');
  expect(() => parse(field('lora_r'), '1.5')).toThrow('whole');
  expect(() => parse(field('lora_r'), 'x')).toThrow('no number');
  expect(parse(field('gpu_ids'), '0, 1')).toEqual([0, 1]);
  expect(parse(field('target_modules'), 'q_proj,, v_proj ')).toEqual(['q_proj', 'v_proj']);
});

test('each setting has a sentence of help, and numbers a range', () => {
  expect([...FIELDS.values()].filter((each) => !each.help && !['base_model'].includes(each.name))).toEqual([]);
  expect(rangeOf(field('beta'))).toBe('above 0 to 10');
});
