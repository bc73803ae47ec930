import { mount } from 'svelte';
import App from './App.svelte';
import { urlFor } from './lib/url';
import './app.css';

const target = document.getElementById('page');
if (target) mount(App, { target });

// A relative URL would be resolved against the path of each view.
document.querySelector('link[rel="icon"]')?.setAttribute('href', urlFor('/assets/spark.svg'));
