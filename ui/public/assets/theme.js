// Runs before the first paint, so that the other theme does not flash.
const theme = localStorage.getItem('merlina-theme');
if (theme) document.documentElement.dataset.theme = theme;
