import { expect, test } from 'vitest';
import { loadingCode } from './result';

test('an adapter is put on its base, a GGUF by its file', () => {
  const code = loadingCode('/models/x', { base_model: '/weights/a.gguf', use_lora: true });
  expect(code).toContain('from_pretrained("/weights", gguf_file="a.gguf", quantization_config=GgufConfig(dequantize=True))');
  expect(code).toContain('PeftModel.from_pretrained(base, "/models/x")');
});

test.each([
  ['model.gguf', '".", gguf_file="model.gguf"'],
  ['/model.gguf', '"/", gguf_file="model.gguf"'],
  ['./a/m.GGUF', '"./a", gguf_file="m.GGUF"'],
])('the folder and the file of %s', (base, parts) => {
  expect(loadingCode('/models/x', { base_model: base })).toContain(`from_pretrained(${parts},`);
});

test('whole weights need no base', () => {
  expect(loadingCode('/models/x', { base_model: 'org/m', use_lora: false })).not.toContain('peft');
});

test('odd names stay strings', () => {
  expect(loadingCode('/a"b', { base_model: 'm' })).toContain('"/a\\"b"');
});
