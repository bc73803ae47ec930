/** How a finished model is loaded. */

export const isAdapter = (config: Record<string, unknown>): boolean => config.use_lora !== false;

export function loadingCode(outputDir: string, config: Record<string, unknown>): string {
  const folder = JSON.stringify(outputDir);
  const tokenizer = `tokenizer = AutoTokenizer.from_pretrained(${folder})`;
  if (!isAdapter(config)) {
    return ['from transformers import AutoModelForCausalLM, AutoTokenizer', '', `model = AutoModelForCausalLM.from_pretrained(${folder})`, tokenizer].join('\n');
  }
  return [
    'from peft import PeftModel',
    'from transformers import AutoModelForCausalLM, AutoTokenizer',
    '',
    `base = ${baseModel(String(config.base_model))}`,
    `model = PeftModel.from_pretrained(base, ${folder})`,
    tokenizer,
  ].join('\n');
}

function baseModel(name: string): string {
  const slash = name.lastIndexOf('/');
  if (!name.toLowerCase().endsWith('.gguf')) return `AutoModelForCausalLM.from_pretrained(${JSON.stringify(name)})`;
  const [folder, file] = [name.slice(0, slash) || '.', name.slice(slash + 1)];
  return `AutoModelForCausalLM.from_pretrained(${JSON.stringify(folder)}, gguf_file=${JSON.stringify(file)})`;
}
