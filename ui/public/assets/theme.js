// Before the first paint, so that a chosen theme doesn't flash in as the other one.
const theme = localStorage.getItem('merlina-theme');
if (theme) document.documentElement.dataset.theme = theme;
