import { mount } from 'svelte';
import App from './App.svelte';
import { addressOf } from './lib/address';
import './app.css';

const target = document.getElementById('page');
if (target) mount(App, { target });

// A relative address would be resolved again, and wrongly, whenever the view changes.
document.querySelector('link[rel="icon"]')?.setAttribute('href', addressOf('/assets/spark.svg'));
