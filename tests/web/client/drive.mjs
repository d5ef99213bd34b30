// Drives the page in a real browser: `node drive.mjs ADDRESS FOLDER BROWSER` reads commands, one JSON array a line, and
// answers each with a line of JSON.
import readline from 'node:readline'
import puppeteer from 'puppeteer-core'

const [, , address, pictures, executablePath] = process.argv
const PATIENCE_MS = 110_000
const browser = await puppeteer.launch({
  executablePath,
  headless: true,
  timeout: PATIENCE_MS,
  protocolTimeout: PATIENCE_MS,
  args: ['--no-sandbox', '--disable-background-networking', '--disable-component-update', '--no-first-run'],
})
const tabs = []
const problems = []

async function open(width = 1000, height = 700) {
  const page = await browser.newPage()
  page.setDefaultTimeout(PATIENCE_MS)
  await page.setViewport({ width, height })
  page.on('pageerror', (error) => problems.push(String(error.message)))
  page.on('console', (one) => ['error', 'warn'].includes(one.type()) && problems.push(one.text().slice(0, 500)))
  await page.goto(address)
  tabs.push(page)
  return tabs.length - 1
}

const rows = (page) =>
  page.$$eval('.messages li', (found) =>
    found.map((one) => ({
      kind: one.className,
      who: one.querySelector('.who').innerText,
      text: one.querySelector('p').innerText,
      about: one.querySelector('.about').innerText,
    })),
  )

// As somebody pastes a text: typing 100,000 keys takes minutes.
const paste = (page, text) =>
  page.$eval(
    '#text',
    (one, text) => {
      one.focus()
      document.execCommand('insertText', false, text)
    },
    text,
  )

// The words that are hardest to read: [contrast to what is behind them, the words].
const faintest = (page) =>
  page.evaluate(() => {
    const canvas = new OffscreenCanvas(1, 1).getContext('2d', { willReadFrequently: true })
    const channels = (color) => {
      canvas.clearRect(0, 0, 1, 1)
      canvas.fillStyle = color
      canvas.fillRect(0, 0, 1, 1)
      return [...canvas.getImageData(0, 0, 1, 1).data]
    }
    const luminance = ([red, green, blue]) => {
      const linear = [red, green, blue].map((one) => one / 255).map((one) => (one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4))
      return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    }
    const behind = (one) => {
      while (one.parentElement && channels(getComputedStyle(one).backgroundColor)[3] < 255) one = one.parentElement
      return getComputedStyle(one).backgroundColor
    }
    const found = [...document.body.querySelectorAll('*')]
      .filter((one) => [...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim()) || one.placeholder)
      .map((one) => {
        const ink = getComputedStyle(one, one.placeholder && !one.value ? '::placeholder' : null).color
        const [dark, light] = [luminance(channels(ink)), luminance(channels(behind(one)))].sort((a, b) => a - b)
        return [(light + 0.05) / (dark + 0.05), one.innerText || one.placeholder]
      })
    return found.sort((a, b) => a[0] - b[0])[0]
  })

const commands = {
  open,
  close: async (tab) => void (await tabs[tab].close()),
  reload: async (tab) => void (await tabs[tab].reload()),
  has: async (tab, selector) => (await tabs[tab].$(selector)) !== null,
  click: async (tab, selector) => void (await tabs[tab].click(selector)),
  press: async (tab, key) => void (await tabs[tab].keyboard.press(key)),
  type: async (tab, text) => void (await tabs[tab].keyboard.type(text)),
  paste: (tab, text) => paste(tabs[tab], text),
  focused: (tab) => tabs[tab].evaluate(() => document.activeElement.id || document.activeElement.className || document.activeElement.tagName),
  rows: (tab) => rows(tabs[tab]),
  value: (tab) => tabs[tab].$eval('#text', (one) => one.value),
  text: (tab, selector) => tabs[tab].$eval(selector, (one) => one.innerText),
  faintest: (tab) => faintest(tabs[tab]),
  scheme: async (tab, value) => void (await tabs[tab].emulateMediaFeatures([{ name: 'prefers-color-scheme', value }])),
  tree: (tab) => tabs[tab].accessibility.snapshot(),
  picture: async (tab, name) => void (await tabs[tab].screenshot({ path: `${pictures}/${name}` })),
  problems: () => problems.splice(0),
}

const reply = (value) => process.stdout.write(`${JSON.stringify(value)}\n`)
for await (const line of readline.createInterface({ input: process.stdin })) {
  const [name, ...given] = JSON.parse(line)
  try {
    reply({ value: (await commands[name](...given)) ?? null })
  } catch (error) {
    reply({ error: String(error.message ?? error) })
  }
}
await browser.close()
