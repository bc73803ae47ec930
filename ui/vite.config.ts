import { readFileSync } from 'node:fs';
import { svelte } from '@sveltejs/vite-plugin-svelte';
import { defineConfig } from 'vitest/config';

const server = process.env.MERLINA_URL ?? 'http://127.0.0.1:8000';
const paths = Object.keys((JSON.parse(readFileSync('src/api/openapi.json', 'utf8')) as { paths: object }).paths);
const api = [...new Set(paths.map((path) => path.split('/')[1]))].join('|');

export default defineConfig({
  plugins: [svelte()],
  // Below which path the page is served is known only when it is asked for.
  base: './',
  build: {
    outDir: '../src/merlina/api/static',
    emptyOutDir: true,
    // Everything is a file of its own: the page's security policy allows nothing inline.
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
  },
  // `npx vite` against a running server, while the page is worked on.
  server: { proxy: { [`^/(${api})(/|\\?|$)`]: server, '/ws': { target: server, ws: true } } },
  test: { include: ['src/**/*.test.ts'] },
});
