"""The page of the example `serve` in headless Chromium, by hand:

    pip install playwright
    target/release/examples/serve --port 8080 --api-key key &
    python tests/serve/page.py http://127.0.0.1:8080/ key FOLDER

CHROMIUM names the browser (default /usr/bin/chromium). Leaves screenshots in FOLDER, to be looked at.
"""

import json
import os
import sys
import time

from playwright.sync_api import sync_playwright

PARAMETERS = {
    "type": "object",
    "properties": {"location": {"type": "string"}},
    "required": ["location"],
    "additionalProperties": False,
}
FUNCTION = {"name": "get_weather", "strict": True, "parameters": PARAMETERS}
TOOLS = json.dumps([{"type": "function", "function": FUNCTION}])


def wait(page, script):
    """Waits for a condition; polls, since the page's policy forbids what Playwright does for it."""
    end = time.monotonic() + 60
    while not page.evaluate(script):
        assert time.monotonic() < end, f"{script}\n{page.locator('#log').inner_text()}"
        time.sleep(0.05)


def note(page, n, has):
    wait(page, f"document.querySelectorAll('.note')[{n}]?.textContent.includes('{has}')")


def setting(page, name, value):
    page.click("#toggle")
    page.fill(name, value)
    page.click("#toggle")


def ask(page, text):
    page.fill("#question", text)
    page.keyboard.press("Enter")


def visit(page, url, key, shot):
    page.goto(url)
    # Without a key the settings open by themselves.
    page.wait_for_selector("#settings:not([hidden])")
    page.fill("#key", key)
    page.fill("#temperature", "0")
    wait(page, "document.title === 'gpt-oss-tiny'")
    shot("settings")
    page.click("#toggle")

    ask(page, "Explain Macros.")
    note(page, 0, "out")
    assert "macro_rules!" in page.locator(".turn:last-child > .text").inner_text()
    assert not page.locator("details .text").is_visible()
    page.locator("summary").click()
    assert "Macros" in page.locator("details .text").inner_text()
    ask(page, "<img src=x onerror=alert(1)> <b>bold</b>")
    note(page, 1, "out")
    assert page.locator("#log img, #log b").count() == 0
    shot("chat")
    width, room = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert width <= room, "the page is wider than the window"

    page.click("#new")
    assert page.locator(".turn").count() == 0
    setting(page, "#temperature", "2")
    ask(page, "Explain Macros.")
    wait(page, "document.querySelector('.turn:last-child .text')?.textContent.length > 5")
    page.click("#stop")
    note(page, 0, "stopped")
    assert page.locator("#send").is_visible()

    page.click("#new")
    setting(page, "#temperature", "0")
    setting(page, "#tools", TOOLS)
    ask(page, "What is the weather in Paris?")
    page.wait_for_selector(".call textarea")
    assert "get_weather({" in page.locator(".call").inner_text()
    page.fill(".call textarea", '{"sky": "sunny"}')
    shot("tool")
    page.click(".call button")
    note(page, 1, "out")
    shot("answer")

    setting(page, "#tools", "[1]")
    ask(page, "Hello.")
    page.wait_for_selector(".bad")
    assert "tools[0]" in page.locator(".bad").inner_text()


def main():
    url, key, folder = sys.argv[1:]
    os.makedirs(folder, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=os.environ.get("CHROMIUM", "/usr/bin/chromium"), args=["--no-sandbox"]
        )
        for name, scheme, width in [("wide", "light", 1000), ("phone", "dark", 390)]:
            size = {"width": width, "height": 760}
            page = browser.new_context(color_scheme=scheme, viewport=size).new_page()
            errors = []
            page.on("pageerror", lambda error: errors.append(str(error)))
            page.on("dialog", lambda dialog: (errors.append(dialog.message), dialog.dismiss()))
            visit(page, url, key, lambda shot: page.screenshot(path=f"{folder}/{name}-{shot}.png"))
            assert not errors, errors
            print(f"{name}: ok")
        browser.close()


if __name__ == "__main__":
    main()
