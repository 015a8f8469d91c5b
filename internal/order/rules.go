package order

import (
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

// textRule is what a string has to pass. The detail of a failed check never
// repeats the string; an empty code means that it passed.
type textRule struct {
	check func(string) (code, detail string)
	free  bool // people write it: any scheme's card number is looked for
}

// id is D1's identifier: 1 to limit of A-Z a-z 0-9 _ -.
func id(limit int) textRule {
	detail := fmt.Sprintf("must be 1 to %d characters of A-Z a-z 0-9 _ -", limit)
	return textRule{check: func(s string) (string, string) {
		if s == "" || len(s) > limit || strings.IndexFunc(s, notIDRune) >= 0 {
			return CodeInvalidFormat, detail
		}
		return "", ""
	}}
}

func notIDRune(r rune) bool {
	return !(r >= 'A' && r <= 'Z' || r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '_' || r == '-')
}

// text is free text of 1 to limit characters, not only spaces.
func text(limit int) textRule {
	return textRule{free: true, check: func(s string) (string, string) {
		switch {
		case utf8.RuneCountInString(s) > limit:
			return CodeTooLong, fmt.Sprintf("is longer than %d characters", limit)
		case strings.TrimSpace(s) == "":
			return CodeInvalidFormat, "must not be empty"
		}
		return "", ""
	}}
}

// oneOf is a closed list of values.
func oneOf(values ...string) textRule {
	return textRule{check: func(s string) (string, string) {
		if slices.Contains(values, s) {
			return "", ""
		}
		return CodeInvalidValue, "must be one of " + strings.Join(values, ", ")
	}}
}

// letters is exactly n letters of the range first..last.
func letters(n int, first, last byte, meaning string) textRule {
	return textRule{check: func(s string) (string, string) {
		ok := len(s) == n
		for i := 0; ok && i < n; i++ {
			ok = s[i] >= first && s[i] <= last
		}
		if !ok {
			return CodeInvalidFormat, "must be " + meaning
		}
		return "", ""
	}}
}

// Lengths and patterns of D1's members. D1 documents those of cardId; the
// others are this service's own bounds, wide enough for all samples of D1.
var (
	cardID          = id(48)
	consumerID      = id(64)
	cardProductID   = id(48)
	issuerRequestID = id(64)
	agreedID        = id(64) // something both sides agreed on at onboarding
	addressText     = text(64)
	printedLine     = text(128)
	countryCode     = letters(2, 'A', 'Z', "an ISO 3166-1 alpha-2 country code in capitals")
	language        = letters(2, 'a', 'z', "an ISO 639-1 language code in small letters")
	metadataValue   = text(256)
	overrideReason  = text(256)
	encryptedData   = textRule{check: checkCompactJWE}
	memberName      = textRule{check: checkMemberName, free: true}
)

// MaxEncryptedData is the longest JWE taken, in characters.
const MaxEncryptedData = 8192

// checkCompactJWE looks at the form only: base64url in parts (RFC 7516).
func checkCompactJWE(s string) (string, string) {
	switch {
	case len(s) > MaxEncryptedData:
		return CodeTooLong, fmt.Sprintf("is longer than %d characters", MaxEncryptedData)
	case strings.Count(s, ".") != 4 || strings.IndexFunc(s, func(r rune) bool { return notIDRune(r) && r != '.' }) >= 0:
		return CodeInvalidFormat, "must be a compact JWE"
	}
	return "", ""
}

// IdempotencyKey says what is wrong with the value of an Idempotency-Key
// header, or returns the empty string.
func IdempotencyKey(key string) string {
	if key == "" || len(key) > 128 || strings.IndexFunc(key, func(r rune) bool { return r <= 0x20 || r >= 0x7f }) >= 0 {
		return "must be 1 to 128 visible ASCII characters"
	}
	return ""
}

// checkMemberName is for names that the caller may choose.
func checkMemberName(s string) (string, string) {
	bad := func(r rune) bool { return notIDRune(r) && r != '.' }
	if s == "" || len(s) > 64 || strings.IndexFunc(s, bad) >= 0 {
		return CodeInvalidFormat, "must be 1 to 64 characters of A-Z a-z 0-9 . _ -"
	}
	return "", ""
}
