/** Formats of the rows of a data set. The titles are those of `detected_format` in the API. */

export const ROW_FORMATS: [string, string][] = [
  ['standard', 'Standard columns'],
  ['sharegpt', 'ShareGPT conversations'],
  ['messages', 'Messages'],
  ['hh_rlhf', 'hh-rlhf transcripts'],
  ['alpaca', 'Alpaca'],
  ['openai_preference', 'OpenAI preference'],
  ['orca_dpo', 'Orca DPO'],
  ['argilla', 'Argilla binarized'],
  ['ultrafeedback', 'UltraFeedback completions'],
  ['rated_generations', 'Rated generations'],
  ['nectar', 'Nectar ranked answers'],
  ['helpsteer', 'HelpSteer scored responses'],
  ['helpsteer_preference', 'HelpSteer preferences'],
  ['arena', 'Chatbot Arena'],
  ['safe_rlhf', 'SafeRLHF'],
  ['stack_exchange', 'Stack Exchange paired'],
  ['shp', 'SHP'],
  ['unpaired', 'Unpaired answers with a label'],
  ['prompt_completion', 'Prompt and completion'],
  ['question_answer', 'Question and answer'],
];

const RANKED = ['ultrafeedback', 'rated_generations', 'nectar', 'helpsteer'];

/** Return whether rows of this format have several ranked answers, which give one pair or several. */
export const isRanked = (format: string): boolean => RANKED.includes(format);

/** Return whether the columns of this format may have other names; '' is an unknown format. */
export const canBeMapped = (format: string): boolean => ['', 'standard'].includes(format);
