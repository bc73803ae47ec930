/** How a finished model is loaded. */

export const isAdapter = (config: Record<string, unknown>): boolean => config.use_lora !== false;

export function loadingCode(outputDir: string, config: Record<string, unknown>): string {
  const folder = JSON.stringify(outputDir);
  const tokenizer = `tokenizer = AutoTokenizer.from_pretrained(${folder})`;
  if (!isAdapter(config)) {
    return ['from transformers import AutoModelForCausalLM, AutoTokenizer', '', `model = AutoModelForCausalLM.from_pretrained(${folder})`, tokenizer].join('\n');
  }
  const base = String(config.base_model);
  return [
    'from peft import PeftModel',
    `from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig${isGguf(base) ? ', GgufConfig' : ''}`,
    '',
    `base = ${baseModel(base)}`,
    `model = PeftModel.from_pretrained(base, ${folder})`,
    `model.generation_config = GenerationConfig.from_pretrained(${folder})`,
    tokenizer,
  ].join('\n');
}

const isGguf = (name: string): boolean => name.toLowerCase().endsWith('.gguf');

function baseModel(name: string): string {
  const slash = name.lastIndexOf('/');
  if (!isGguf(name)) return `AutoModelForCausalLM.from_pretrained(${JSON.stringify(name)})`;
  const folder = slash < 0 ? '.' : name.slice(0, slash) || '/';
  const file = name.slice(slash + 1);
  return `AutoModelForCausalLM.from_pretrained(${JSON.stringify(folder)}, gguf_file=${JSON.stringify(file)}, quantization_config=GgufConfig(dequantize=True))`;
}
