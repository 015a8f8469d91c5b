package order

import (
	"unicode"
	"unicode/utf8"
)

// PANGuard finds card numbers where none may stand. Luhn alone would refuse one
// in ten numeric ids, so a number must also begin like a card: with one of the
// issuer's BINs anywhere, and in free text with any scheme's prefix and length
// (ISO/IEC 7812; PCI DSS 3.4).
type PANGuard struct {
	BINs []string // of the issuer, 6 to 8 digits each
}

// Lengths of what is taken for a card number, in digits.
const (
	fewestDigits = 13
	mostDigits   = 19
)

// Finds tells whether text holds what looks like a card number: 13 to 19 digits
// with at most one space or dash between two of them, touching no other letter
// or digit, that pass Luhn and begin like a card. free is for text that people
// write.
//
// The issuer's own numbers are found whatever they are a part of. A number that
// only a scheme's prefix speaks for is let pass in free text where its form says
// that it is something else: see otherwiseKnown.
func (g PANGuard) Finds(text string, free bool) bool { return findsNumber(g, text, free) }

// characters are text: a string, or a part of a buffer that will be cleared and
// is not to be copied.
type characters interface{ string | []byte }

func findsNumber[T characters](g PANGuard, text T, free bool) bool {
	for i := 0; i < len(text); {
		from := i
		for i < len(text) && isDigit(text[i]) {
			i++
		}
		if i == from {
			i++
			continue
		}
		// Most digits are a few that nothing follows.
		if i-from < fewestDigits && (i == len(text) || separator(text, i) == 0) {
			continue
		}
		r := runAt(text, from)
		if r.digits >= fewestDigits && r.holdsNumber(g, free) {
			return true
		}
		i = r.to
	}
	return false
}

func isDigit(c byte) bool { return c >= '0' && c <= '9' }

// run is digits in groups, with one space or dash between two groups, as long as
// it goes.
type run[T characters] struct {
	text             T   // all of it
	from, to         int // the run's place in text
	digits           int
	plus             bool // a plus sign stands before it
	lettered         bool // a letter touches its first group
	trailingLettered bool // a letter touches its last group
}

func runAt[T characters](text T, from int) run[T] {
	r := run[T]{text: text, from: from, to: from}
	for {
		for r.to < len(text) && isDigit(text[r.to]) {
			r.to++
			r.digits++
		}
		gap := separator(text, r.to)
		if gap == 0 {
			break
		}
		r.to += gap
	}
	if r.digits < fewestDigits {
		return r
	}
	before, after := runeBefore(text, from), runeAt(text, r.to)
	r.plus, r.lettered, r.trailingLettered = before == '+', isWordRune(before), isWordRune(after)
	return r
}

// separator is the length of the one space or dash that stands at i before a
// digit, 0 when none does. Word processors put in wide ones.
func separator[T characters](text T, i int) int {
	if i >= len(text) {
		return 0
	}
	n := 1
	if c := text[i]; c >= utf8.RuneSelf {
		r := runeAt(text, i)
		if !unicode.In(r, unicode.Zs, unicode.Pd) {
			return 0
		}
		n = utf8.RuneLen(r)
	} else if c != ' ' && c != '-' {
		return 0
	}
	if i+n < len(text) && isDigit(text[i+n]) {
		return n
	}
	return 0
}

// runeAt is the character at i, utf8.RuneError when there is none. The few bytes
// that it copies stay on the stack.
func runeAt[T characters](text T, i int) rune {
	r, _ := utf8.DecodeRuneInString(string(text[i:min(i+utf8.UTFMax, len(text))]))
	return r
}

// runeBefore is the character that ends at i, utf8.RuneError when there is none.
func runeBefore[T characters](text T, i int) rune {
	r, _ := utf8.DecodeLastRuneInString(string(text[max(i-utf8.UTFMax, 0):i]))
	return r
}

func isWordRune(r rune) bool {
	return r != utf8.RuneError && (unicode.IsLetter(r) || unicode.IsDigit(r))
}

// holdsNumber looks at every sequence of whole groups: a card number may stand beside
// another number.
func (r *run[T]) holdsNumber(g PANGuard, free bool) bool {
	for from := r.from; from < r.to; from = r.nextGroup(from) {
		if from == r.from && r.lettered {
			continue
		}
		var number [mostDigits]byte
		n := 0
		for to := from; to < r.to; {
			for ; to < r.to && isDigit(r.text[to]) && n < mostDigits; to++ {
				number[n] = r.text[to]
				n++
			}
			if to < r.to && isDigit(r.text[to]) || to == r.to && r.trailingLettered {
				break
			}
			if n >= fewestDigits && luhn(number[:n]) &&
				(g.isOurs(number[:n]) || free && isAnyScheme(number[:n]) && !r.otherwiseKnown(from, to, n)) {
				return true
			}
			to += separator(r.text, to)
		}
	}
	return false
}

// nextGroup is where the group after the one at from begins.
func (r *run[T]) nextGroup(from int) int {
	for from < r.to && isDigit(r.text[from]) {
		from++
	}
	if from == r.to {
		return from
	}
	return from + separator(r.text, from)
}

// otherwiseKnown tells whether the n digits from..to are a part of something
// else by its form. In free text a scheme's prefix alone would take it for a card
// number now and then: one German mobile number in ten begins like a Visa card
// and passes Luhn.
func (r *run[T]) otherwiseKnown(from, to, n int) bool {
	switch {
	case r.plus && (r.digits <= maxPhone || from == r.from && n <= maxPhone):
		return true // a phone number (ITU-T E.164)
	case isUUID(r.text, from) && to <= from+uuidLength:
		return true // its first groups
	case isUUID(r.text, from-uuidTail) && to <= from-uuidTail+uuidLength:
		return true // its last groups
	}
	return isParcel(r.text[r.from:r.to])
}

const (
	maxPhone   = 15 // digits
	uuidLength = 36
	uuidTail   = 19 // where the fourth group begins
)

// isUUID tells whether a UUID begins at from: 8-4-4-4-12 hexadecimal digits, a
// letter among them, that touch no other letter or digit.
func isUUID[T characters](text T, from int) bool {
	if from < 0 || len(text)-from < uuidLength {
		return false
	}
	letters := false
	for i := range uuidLength {
		c := text[from+i]
		switch {
		case i == 8 || i == 13 || i == 18 || i == 23:
			if c != '-' {
				return false
			}
		case c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F':
			letters = true
		case !isDigit(c):
			return false
		}
	}
	return letters && !isWordRune(runeBefore(text, from)) && !isWordRune(runeAt(text, from+uuidLength))
}

// isParcel tells whether run is a parcel of the United States' post as it is
// printed: 9101 0268 3733 1000 0395 21, the last one its check digit (USPS
// Publication 199).
func isParcel[T characters](run T) bool {
	if len(run) != len("9101 0268 3733 1000 0395 21") || run[0] != '9' || run[1] < '1' || run[1] > '5' {
		return false
	}
	sum, weight := 0, 1
	for i := len(run) - 1; i >= 0; i-- {
		if i%5 == 4 {
			if run[i] != ' ' {
				return false
			}
			continue
		}
		if !isDigit(run[i]) {
			return false
		}
		sum += weight * int(run[i]-'0')
		weight = 4 - weight
	}
	return sum%10 == 0
}

func (g PANGuard) isOurs(number []byte) bool {
	for _, bin := range g.BINs {
		if len(bin) <= len(number) && string(number[:len(bin)]) == bin {
			return true
		}
	}
	return false
}

func isAnyScheme(number []byte) bool {
	first := 0
	for _, c := range number[:4] {
		first = first*10 + int(c-'0')
	}
	for _, s := range schemes {
		if first >= s.from && first <= s.to && len(number) >= s.shortest && len(number) <= s.longest {
			return true
		}
	}
	return false
}

// schemes are the ranges of the card networks by the first four digits, as they
// publish them.
var schemes = []struct {
	from, to          int
	shortest, longest int
}{
	{4000, 4999, 13, 13}, // Visa
	{4000, 4999, 16, 16}, // Visa
	{4000, 4999, 18, 19}, // Visa
	{5100, 5599, 16, 16}, // Mastercard
	{2221, 2720, 16, 16}, // Mastercard
	{3400, 3499, 15, 15}, // American Express
	{3700, 3799, 15, 15}, // American Express
	{3000, 3059, 14, 19}, // Diners Club
	{3095, 3095, 14, 19}, // Diners Club
	{3600, 3699, 14, 19}, // Diners Club
	{3800, 3999, 14, 19}, // Diners Club
	{3528, 3589, 16, 19}, // JCB
	{6011, 6011, 16, 19}, // Discover
	{6440, 6499, 16, 19}, // Discover
	{6500, 6599, 16, 19}, // Discover
	{6200, 6299, 16, 19}, // UnionPay
	{2200, 2204, 16, 19}, // Mir
	{5019, 5019, 16, 16}, // Dankort
	{5018, 5018, 13, 19}, // Maestro
	{5020, 5020, 13, 19}, // Maestro
	{5038, 5038, 13, 19}, // Maestro
	{5893, 5893, 13, 19}, // Maestro
	{6304, 6304, 13, 19}, // Maestro
	{6703, 6703, 13, 19}, // Maestro
	{6759, 6763, 13, 19}, // Maestro
	{6771, 6771, 13, 19}, // Maestro
}

// luhn checks the last digit of a card number (ISO/IEC 7812-1, annex B).
func luhn(number []byte) bool {
	sum := 0
	for i := range number {
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
