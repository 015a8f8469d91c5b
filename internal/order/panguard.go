package order

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// PANGuard finds card numbers where none may stand. Luhn alone would refuse one
// in ten numeric ids, so a number must also begin like a card: with one of the
// issuer's BINs anywhere, and in free text with any scheme's prefix
// (ISO/IEC 7812; PCI DSS 3.4).
type PANGuard struct {
	BINs []string // of the issuer, 6 to 8 digits each
}

// Finds tells whether text holds what looks like a card number: 13 to 19 digits
// with at most one space or hyphen between two of them, touching no other letter
// or digit, that pass Luhn and begin like a card. free is for text that people
// write; there a plus sign before up to 15 digits makes them a phone number
// (ITU-T E.164), for 13 digits of a German mobile phone begin like a Visa card.
func (g PANGuard) Finds(text string, free bool) bool {
	for len(text) > 0 {
		start := strings.IndexFunc(text, isDigit)
		if start < 0 {
			return false
		}
		groups, length := digitGroups(text[start:])
		before, _ := utf8.DecodeLastRuneInString(text[:start])
		after, _ := utf8.DecodeRuneInString(text[start+length:])
		if isWordRune(before) {
			groups = groups[1:]
		}
		if isWordRune(after) && len(groups) > 0 {
			groups = groups[:len(groups)-1]
		}
		if g.inGroups(groups, free, before == '+') {
			return true
		}
		text = text[start+length:]
	}
	return false
}

func isDigit(r rune) bool { return r >= '0' && r <= '9' }

func isWordRune(r rune) bool {
	return r != utf8.RuneError && (unicode.IsLetter(r) || unicode.IsDigit(r))
}

// digitGroups reads digits, in groups with one space or hyphen between them.
func digitGroups(text string) (groups []string, length int) {
	for {
		n := strings.IndexFunc(text[length:], func(r rune) bool { return !isDigit(r) })
		if n < 0 {
			n = len(text) - length
		}
		groups = append(groups, text[length:length+n])
		length += n
		if length+1 >= len(text) || text[length] != ' ' && text[length] != '-' || !isDigit(rune(text[length+1])) {
			return groups, length
		}
		length++
	}
}

// inGroups looks at every run of whole groups: a card number may stand beside
// another number.
func (g PANGuard) inGroups(groups []string, free, plus bool) bool {
	for i := range groups {
		number := ""
		for _, group := range groups[i:] {
			if number += group; len(number) > 19 {
				break
			}
			phone := plus && i == 0 && len(number) <= 15
			if len(number) >= 13 && luhn(number) && g.beginsLikeCard(number, free && !phone) {
				return true
			}
		}
	}
	return false
}

func (g PANGuard) beginsLikeCard(number string, free bool) bool {
	for _, bin := range g.BINs {
		if strings.HasPrefix(number, bin) {
			return true
		}
	}
	if !free {
		return false
	}
	for _, s := range schemes {
		prefix := number[:len(s.from)]
		if prefix >= s.from && prefix <= s.to && len(number) >= s.shortest && len(number) <= s.longest {
			return true
		}
	}
	return false
}

// schemes are the ranges of the card networks, as they publish them.
var schemes = []struct {
	from, to          string
	shortest, longest int
}{
	{"4", "4", 13, 19},       // Visa
	{"51", "55", 16, 16},     // Mastercard
	{"2221", "2720", 16, 16}, // Mastercard
	{"34", "34", 15, 15},     // American Express
	{"37", "37", 15, 15},     // American Express
	{"300", "305", 14, 19},   // Diners Club
	{"36", "36", 14, 19},     // Diners Club
	{"38", "39", 16, 19},     // Diners Club
	{"3528", "3589", 16, 19}, // JCB
	{"6011", "6011", 16, 19}, // Discover
	{"644", "649", 16, 19},   // Discover
	{"65", "65", 16, 19},     // Discover
	{"62", "62", 16, 19},     // UnionPay
	{"5018", "5018", 13, 19}, // Maestro
	{"5020", "5020", 13, 19}, // Maestro
	{"5038", "5038", 13, 19}, // Maestro
	{"5893", "5893", 13, 19}, // Maestro
	{"6304", "6304", 13, 19}, // Maestro
	{"6759", "6763", 13, 19}, // Maestro
}

// luhn checks the last digit of a card number (ISO/IEC 7812-1, annex B).
func luhn[T string | []byte](number T) bool {
	sum := 0
	for i := range len(number) {
		d := int(number[len(number)-1-i] - '0')
		if i%2 == 1 {
			if d *= 2; d > 9 {
				d -= 9
			}
		}
		sum += d
	}
	return sum%10 == 0
}
