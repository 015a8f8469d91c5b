package order

import (
	"regexp"
	"unicode"
	"unicode/utf8"
)

// NameRule says which names can be printed. The zero value is the default:
// letters, digits, space and . ' - /, at most 26 characters.
type NameRule struct {
	// Character matches a single character that may stand in a name; nil means
	// the default. One that matches nothing at all as well lets no character pass.
	Character *regexp.Regexp
	Length    int // in characters; 0 means 26
}

// The default of NameRule; the characters are what printable takes.
const (
	defaultNameLength     = 26
	defaultNameCharacters = `[\p{L}\p{M}\p{Nd} .'/-]`
)

// Limit returns how many characters a name may have.
func (n NameRule) Limit() int {
	if n.Length > 0 {
		return n.Length
	}
	return defaultNameLength
}

// Characters returns the class of those that may stand in a name, as RE2 writes it.
func (n NameRule) Characters() string {
	if n.Character != nil {
		return n.Character.String()
	}
	return defaultNameCharacters
}

// printable tells whether every character may stand in a name, and else the
// position of the first that may not, counted from 1, and whether the default
// would take it.
func (n NameRule) printable(name []byte) (position int, byDefault bool) {
	none := n.Character != nil && n.Character.Match(nil)
	letter := false // the character before is a letter, which marks may be on
	for i := 0; i < len(name); {
		r, size := utf8.DecodeRune(name[i:])
		position++
		letter = unicode.IsLetter(r) || letter && unicode.IsMark(r)
		byDefault = letter || isNameRune(r)
		if n.Character == nil && !byDefault || n.Character != nil && (none || !n.Character.Match(name[i:i+size])) {
			return position, byDefault
		}
		i += size
	}
	return 0, true
}

// isNameRune is for what may stand in a name besides letters.
func isNameRune(r rune) bool {
	switch r {
	case ' ', '.', '\'', '-', '/':
		return true
	}
	return unicode.IsDigit(r)
}

// checkName reports what cannot be printed of a name, by position.
func (d *document) checkName(pointer func() string, name []byte) bool {
	rule := NameRule{}
	if d.program != nil {
		rule = d.program.Names
	}
	fits := true
	limit := rule.Limit()
	if length := utf8.RuneCount(name); length > limit {
		fits = false
		const detail = "is longer than %d characters"
		if length <= defaultNameLength {
			d.outsideProgram(pointer(), "nameLength", detail, limit)
		} else {
			d.fault(pointer(), CodeTooLong, detail, limit)
		}
	}
	if position, byDefault := rule.printable(name); position > 0 {
		fits = false
		const detail = "has a character at position %d that cannot be printed"
		if byDefault {
			d.outsideProgram(pointer(), "nameCharacters", detail, position)
		} else {
			d.fault(pointer(), CodeInvalidCharacter, detail, position)
		}
	}
	return fits
}
