package order

import "github.com/go-json-experiment/json/jsontext"

// sensitiveMembers are the members of D1's plaintext (d1: encryptedData).
var sensitiveMembers = map[string]bool{
	"pan": true, "exp": true, "name": true, "secondName": true, "encodedName": true, "cvv1": true, "cvv2": true,
	"pvv": true, "paymentAccountReference": true, "effectiveDate": true, "panSequenceNumber": true, "trackData": true,
}

// shortestPAN is the number of digits of the shortest card number that D1 takes.
const shortestPAN = 10

// sensitiveData checks card data that came in clear, without ever copying it:
// it stays a part of the text, so that clearing the text clears it.
func (d *document) sensitiveData(value jsontext.Value) {
	const at = "/sensitiveData"
	o, ok := d.object(at, value)
	if !ok {
		return
	}
	for _, name := range []string{"pan", "exp"} {
		if !o.has(name) {
			o.require(name)
		}
	}
	for _, m := range o.members {
		switch {
		case !sensitiveMembers[m.name]:
			if PlainName(m.name) {
				d.fault(o.at(m.name), CodeUnknownMember, "is not a member of card data")
			} else {
				d.fault(at, CodeUnknownMember, "has a member that is not part of card data")
			}
		case m.value.Kind() == 'n': // counts as absent
		case m.name == "pan":
			if digits := unquoted(m.value); !allDigits(digits) || len(digits) < shortestPAN || len(digits) > 19 || !luhn(digits) {
				d.fault(o.at(m.name), CodeInvalidFormat, "must be a card number of 10 to 19 digits")
			}
		case m.name == "exp":
			if digits := unquoted(m.value); !allDigits(digits) || len(digits) != 4 || month(digits[2:]) < 1 || month(digits[2:]) > 12 {
				d.fault(o.at(m.name), CodeInvalidFormat, "must be YYMM")
			}
		}
	}
}

// unquoted returns what stands between the quotes of a JSON string, nil for any
// other value. A string with escapes is not digits, so they need no decoding.
func unquoted(value jsontext.Value) []byte {
	if value.Kind() != '"' {
		return nil
	}
	return value[1 : len(value)-1]
}

func allDigits(b []byte) bool {
	for _, c := range b {
		if c < '0' || c > '9' {
			return false
		}
	}
	return len(b) > 0
}

func month(b []byte) int { return int(b[0]-'0')*10 + int(b[1]-'0') }
