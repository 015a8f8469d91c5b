package order

import (
	"bytes"
	"slices"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
)

// shortestPAN is the number of digits of the shortest card number that D1 takes.
const shortestPAN = 10

// digitMembers are members of card data that hold digits only, with how many.
// D1 says nothing of their lengths but the schemes do; where two lengths are in
// use, both are taken.
var digitMembers = []struct {
	name             string
	fewest, most     int
	required, isDate bool
	detail           string
}{
	{name: "exp", fewest: 4, most: 4, required: true, isDate: true, detail: "must be YYMM"},
	{name: "cvv1", fewest: 3, most: 3, detail: "must be 3 digits"},
	{name: "cvv2", fewest: 3, most: 4, detail: "must be 3 or 4 digits"},
	{name: "pvv", fewest: 4, most: 5, detail: "must be 4 or 5 digits"},
	{name: "panSequenceNumber", fewest: 2, most: 2, detail: "must be 2 digits"},
	{name: "effectiveDate", fewest: 4, most: 8, detail: "must be 4 to 8 digits"},
}

// sensitiveData checks card data that came in clear (D1: the plaintext of
// encryptedData) without copying it: it stays a part of the text, so that
// clearing the text clears it.
func (d *document) sensitiveData(value span) {
	o, ok := d.object("/sensitiveData", value)
	if !ok {
		return
	}
	d.pan(&o)
	for _, m := range digitMembers {
		if m.required && !o.has(m.name) {
			o.require(m.name)
		}
		digits, ok := o.secret(m.name)
		if !ok {
			continue
		}
		if !allDigits(digits) || len(digits) < m.fewest || len(digits) > m.most || m.isDate && !isMonth(digits[2:4]) {
			d.fault(o.at(m.name), CodeInvalidFormat, "%s", m.detail)
		}
	}
	for _, name := range []string{"name", "secondName"} {
		text, ok := o.secretText(name)
		switch {
		case !ok:
		case findsNumber(d.rules.Guard, text, true): // it would be printed, and shown by a dry run
			d.fault(o.at(name), CodeCardNumber, "holds what looks like a card number")
		default:
			d.checkName(func() string { return o.at(name) }, text)
		}
	}
	o.secretText("encodedName")
	if text, ok := o.secret("paymentAccountReference"); ok && !isPAR(text) {
		d.fault(o.at("paymentAccountReference"), CodeInvalidFormat, "must be %d characters of A-Z 0-9", parLength)
	}
	if tracks, ok := o.object("trackData"); ok {
		for _, name := range []string{"track1", "track2", "track3"} {
			tracks.secretText(name)
		}
		tracks.closeAs("card data")
	}
	o.closeAs("card data")
}

func (d *document) pan(o *object) {
	if !o.has("pan") {
		o.take("pan")
		o.require("pan")
		return
	}
	pan, ok := o.secret("pan")
	switch {
	case !ok:
	case !allDigits(pan) || len(pan) < shortestPAN || len(pan) > mostDigits || !luhn(pan):
		d.fault(o.at("pan"), CodeInvalidFormat, "must be a card number of 10 to 19 digits")
	case len(d.rules.Guard.BINs) > 0 && !d.rules.Guard.isOurs(pan):
		d.fault(o.at("pan"), CodeInvalidValue, "does not begin with one of the issuer's BINs")
	}
}

// secret reads an optional string of ASCII characters, which need no escapes: one
// with escapes passes no check that follows.
func (o *object) secret(name string) ([]byte, bool) {
	value, ok := o.take(name)
	if !ok {
		return nil, false
	}
	if o.d.text[value.from] != '"' {
		o.d.fault(o.at(name), CodeInvalidFormat, "must be a string")
		return nil, false
	}
	return o.d.text[value.from+1 : value.to-1], true
}

// secretText reads an optional string that people may read, into the scratch
// when it has escapes.
func (o *object) secretText(name string) ([]byte, bool) {
	value, ok := o.take(name)
	if !ok {
		return nil, false
	}
	if o.d.text[value.from] != '"' {
		o.d.fault(o.at(name), CodeWrongType, "must be a string")
		return nil, false
	}
	text := o.d.unquoted(value)
	if i := controlAt(text); i >= 0 {
		o.d.fault(o.at(name), CodeInvalidCharacter, "has a control character at position %d", utf8.RuneCount(text[:i])+1)
		return nil, false
	}
	if len(bytes.TrimSpace(text)) == 0 {
		o.d.fault(o.at(name), CodeInvalidFormat, "must not be empty")
		return nil, false
	}
	return text, true
}

// parLength is the length of a payment account reference (EMVCo).
const parLength = 29

func isPAR(b []byte) bool {
	return len(b) == parLength && !slices.ContainsFunc(b, func(c byte) bool { return !isDigit(c) && (c < 'A' || c > 'Z') })
}

func allDigits(b []byte) bool {
	for _, c := range b {
		if !isDigit(c) {
			return false
		}
	}
	return len(b) > 0
}

func isMonth(b []byte) bool {
	month := int(b[0]-'0')*10 + int(b[1]-'0')
	return month >= 1 && month <= 12
}

// PrintedName is the name that card data in clear, which Decode took, puts on the
// card; empty when there is none. It is personal data.
func PrintedName(sensitiveData []byte) string {
	if !jsontext.Value(sensitiveData).IsValid() {
		return ""
	}
	d := newDocument(sensitiveData, &Rules{})
	defer d.release()
	from := d.space(0)
	o, ok := d.object("", span{from, d.valueEnd(from)})
	if !ok {
		return ""
	}
	name, _ := o.secretText("name")
	return string(name)
}
