"""Elements that the lowering has written beforehand are those that the source makes; test_vectors.py compares pages."""

from __future__ import annotations

import ast

import pytest

from gradaccum.web.site.fold import fold

HEAD = "from gradaccum.show.html import EMPTY, Markup, el, fragment, raw\n"
ELEMENTS = (
    "el('p')",
    "el('br')",
    "el('p', None)",
    "el('p', None, None)",
    "el('p', {}, 'a < b & \"c\"', 'd')",
    "el('p', {'title': 'a < \"b\"', 'class': 'hint', 'hidden': True, 'id': None, 'open': False}, 4)",
    "el('input', {'value': text, 'checked': yes, 'disabled': no, 'size': number, 'id': nothing})",
    "el('p', {'id': f'{text}-{number}', 'class': 'a ' + text}, f'{text} & {number}', '<' + text)",
    "el('p', {'class': 'on' if yes else None, 'id': text if no else 'b<'}, 'x' if no else el('b', None, text))",
    "el('p', None, None if yes else 'x', None if no else 'y')",
    "el('ul', None, [el('li', {'id': f'n{each}'}, each, markup) for each in (1, 2) if each != number])",
    "el('p', None, [text, [number, ('z<', markup, None)]], *several, EMPTY)",
    "el('p', None, several, [*several, 'last'])",
    "el('p', None, el('i', None, el('b', {'class': text}, 'deep')), ' ', el('br'))",
    "el(tag, None, text)",
    "el('p', attributes, text)",
    "el('p', {**attributes, 'class': 'x'}, text)",
    "el('p', {text: 'x'}, el('b', None, 'y'))",
    "fragment(text, el('b', None, number))",
    "el('p', None, lambda_(lambda each: el('i', None, each)))",
    "el('p', {'data-of': min([number, 2])}, *[el('i', None, each) for each in several])",
    "el('p', None, {each: el('b', None, each) for each in ('k',)}['k'])",
    "el('p', None, fragment(*(el('b', None, each) for each in several)))",
)
VALUES = (
    "text, number, yes, no, nothing, tag = \"<&\\'>\", 3, True, False, None, 'h2'\n"
    "markup, several, attributes = raw('<hr>'), ['q', 5, raw('<br>')], {'b': 1, 'a': text}\n"
    "def lambda_(make): return make(text)\n"
)


def namespace(tree):
    made = {}
    exec(compile(ast.fix_missing_locations(tree), "planted.py", "exec"), made)
    return made


@pytest.mark.parametrize("element", ELEMENTS)
def test_it_is_the_same_text(element):
    source = f"{HEAD}{VALUES}found = str({element})\n"
    assert namespace(fold(ast.parse(source)))["found"] == namespace(ast.parse(source))["found"]


def test_what_is_known_is_written_once():
    source = HEAD + "found = el('p', {'id': 'a', 'class': 'b'}, 'c & d', [el('i', None, 'e') for _ in '12'])\n"
    assert ast.unparse(fold(ast.parse(source))).splitlines()[1] == (
        """found = _Markup(''.join(['<p class="b" id="a">c &amp; d', ''.join(['<i>e</i>' for _ in '12']), '</p>']))"""
    )


@pytest.mark.parametrize("wrong", ["el('p', None, 1.5)", "el('p', None, number)", "el('p', {'x': number})"])
def test_what_el_refuses_is_refused(wrong):
    with pytest.raises(TypeError, match=r"only text, integers and markup are shown, not 1\.5"):
        namespace(fold(ast.parse(f"{HEAD}number = 1.5\nfound = {wrong}")))


@pytest.mark.parametrize(
    "source", ["def el(*parts): return parts\nx = el('p')", "from gradaccum.show.html import el as e"]
)
def test_another_el_is_left_alone(source):
    assert ast.unparse(fold(ast.parse(source))) == ast.unparse(ast.parse(source))
