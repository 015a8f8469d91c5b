package order

import (
	"fmt"
	"strings"
)

// Fault is one thing wrong with a request. It names the place and never
// repeats the value: the value may be card data in the wrong field.
type Fault struct {
	Pointer string `json:"pointer"` // RFC 6901, "" is the whole document
	Code    string `json:"code"`
	Detail  string `json:"detail"`
	Rule    string `json:"rule,omitempty"` // of the program that refuses it, with CodeOutsideProgram
}

// Fault codes: stable, part of the API.
const (
	CodeInvalidJSON      = "invalid-json"
	CodeUnknownMember    = "unknown-member"
	CodeRequired         = "required"
	CodeWrongType        = "wrong-type"
	CodeInvalidFormat    = "invalid-format"
	CodeInvalidValue     = "invalid-value"
	CodeInvalidCharacter = "invalid-character"
	CodeTooLong          = "too-long"
	CodeTooMany          = "too-many"
	CodeNotAllowed       = "not-allowed"
	CodeCardNumber       = "card-number"     // a card number where none may stand
	CodeOutsideProgram   = "outside-program" // D1 takes it, the issuer's agreement does not
	CodeInvalidCSV       = "invalid-csv"
	CodeUnknownOrder     = "unknown-order" // names an order that is not there
)

// Faults is everything wrong with a request; as an error it lists them all.
type Faults []Fault

func (f Faults) Error() string {
	parts := make([]string, len(f))
	for i, fault := range f {
		parts[i] = fmt.Sprintf("%s: %s", fault.Pointer, fault.Detail)
	}
	return "invalid order: " + strings.Join(parts, "; ")
}
