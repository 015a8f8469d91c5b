package d1sim

import (
	"regexp"

	"github.com/go-jose/go-jose/v4"
)

var (
	panPattern      = regexp.MustCompile(`^[0-9]{10,19}$`)
	expiryPattern   = regexp.MustCompile(`^[0-9]{2}(0[1-9]|1[0-2])$`) // YYMM
	sequencePattern = regexp.MustCompile(`^[0-9]{2}$`)
)

// cardData is the decrypted encryptedData.
var cardData = object(
	required("pan", pan),
	required("exp", matching(expiryPattern)),
	optional("name", text(26)),
	optional("secondName", anyText),
	optional("encodedName", anyText),
	optional("cvv1", anyText),
	optional("cvv2", anyText),
	optional("pvv", anyText),
	optional("paymentAccountReference", anyText),
	optional("effectiveDate", anyText),
	optional("panSequenceNumber", matching(sequencePattern)),
	optional("trackData", object(
		optional("track1", anyText),
		optional("track2", anyText),
		optional("track3", anyText),
	)),
)

// checkCardData decrypts encryptedData and looks at what is inside. Nothing of it is kept, and a fault names only the
// members of the contract: the name of an unknown member could itself be card data.
func (s *Sim) checkCardData(encrypted string) *fault {
	jwe, err := jose.ParseEncryptedCompact(encrypted, []jose.KeyAlgorithm{jose.ECDH_ES}, []jose.ContentEncryption{jose.A256GCM})
	if err != nil {
		return &fault{cryptoError, "encryptedData", "is not a compact JWE of ECDH-ES and A256GCM"}
	}
	if jwe.Header.KeyID != s.keyID {
		return &fault{cryptoError, "encryptedData", "kid is missing or unknown"}
	}
	plaintext, err := jwe.Decrypt(s.key)
	if err != nil {
		return &fault{cryptoError, "encryptedData", "can't be decrypted"}
	}
	defer clear(plaintext)

	data, err := parseObject(plaintext)
	if err != nil {
		return &fault{parsingError, "encryptedData", "the decrypted text is not one JSON object"}
	}
	f := cardData("", data)
	if f != nil && f.why == unknownMember {
		f.field = "encryptedData"
	}
	return f
}

func pan(field string, value any) *fault {
	if f := matching(panPattern)(field, value); f != nil {
		return f
	}
	if !luhn(value.(string)) {
		return &fault{invalidValue, field, "check digit is wrong"}
	}
	return nil
}

// luhn verifies the check digit of a number: from the right, every second digit counts double.
func luhn(number string) bool {
	sum := 0
	for i := range len(number) {
		digit := int(number[len(number)-1-i] - '0')
		if i%2 == 1 {
			digit *= 2
		}
		sum += digit/10 + digit%10
	}
	return sum%10 == 0
}
