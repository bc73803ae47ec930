import { readFileSync } from 'node:fs';
import { svelte } from '@sveltejs/vite-plugin-svelte';
import { defineConfig } from 'vitest/config';
import type { Plugin } from 'vite';

const server = process.env.MERLINA_URL ?? 'http://127.0.0.1:8000';
const paths = Object.keys((JSON.parse(readFileSync('src/api/openapi.json', 'utf8')) as { paths: object }).paths);
const api = [...new Set(paths.map((path) => path.split('/')[1]))].join('|');

/** List the bundled packages, for NOTICE and the test that checks it. */
function listBundled(): Plugin {
  return {
    name: 'list-bundled',
    generateBundle(_options, bundle) {
      const parts = Object.values(bundle);
      const files = parts.flatMap((part) => (part.type === 'chunk' ? part.moduleIds : part.originalFileNames));
      const names = files.map((file) => /node_modules\/((?:@[^/]+\/)?[^/]+)\//.exec(file)?.[1]);
      const packages = [...new Set(names.filter((name) => name !== undefined))].sort();
      this.emitFile({ type: 'asset', fileName: 'bundled.json', source: JSON.stringify(packages) });
    },
  };
}

export default defineConfig({
  plugins: [svelte(), listBundled()],
  // The server's path is known only at the time of a request.
  base: './',
  build: {
    outDir: '../src/merlina/api/static',
    emptyOutDir: true,
    // The page's security policy allows nothing inline.
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
  },
  // `npx vite` forwards API requests to a running server during development.
  server: { proxy: { [`^/(${api})(/|\\?|$)`]: server, '/ws': { target: server, ws: true } } },
  test: { include: ['src/**/*.test.ts'] },
});
