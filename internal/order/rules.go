package order

import (
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// textRule is what a string has to pass. The detail of a failed check never
// repeats the string; an empty code means that it passed.
type textRule struct {
	check func(string) (code, detail string)
	free  bool // people write it: any scheme's card number is looked for
	name  bool // the name of a person, which the program has a say in
}

// id is D1's identifier: 1 to limit of A-Z a-z 0-9 _ -.
func id(limit int) textRule {
	detail := fmt.Sprintf("must be 1 to %d characters of A-Z a-z 0-9 _ -", limit)
	return textRule{check: func(s string) (string, string) {
		if s == "" || len(s) > limit || !isID(s, '-') {
			return CodeInvalidFormat, detail
		}
		return "", ""
	}}
}

// isID tells whether s is of A-Z a-z 0-9 _ - and one more character only.
func isID(s string, more byte) bool {
	for i := range len(s) {
		if c := s[i]; (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && !isDigit(c) && c != '_' && c != '-' && c != more {
			return false
		}
	}
	return true
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
func oneOf[T ~string](values ...T) textRule {
	names := make([]string, len(values))
	for i, v := range values {
		names[i] = string(v)
	}
	return textRule{check: func(s string) (string, string) {
		if slices.Contains(names, s) {
			return "", ""
		}
		return CodeInvalidValue, "must be one of " + strings.Join(names, ", ")
	}}
}

// code is one of a list of two-letter codes, separated by white space.
func code(list, meaning string) textRule {
	known := make(map[string]bool)
	for _, c := range strings.Fields(list) {
		known[c] = true
	}
	capitals := list == strings.ToUpper(list)
	return textRule{check: func(s string) (string, string) {
		switch {
		case known[s]:
			return "", ""
		case len(s) != 2 || strings.ContainsFunc(s, func(r rune) bool {
			return capitals && (r < 'A' || r > 'Z') || !capitals && (r < 'a' || r > 'z')
		}):
			return CodeInvalidFormat, "must be " + meaning
		}
		return CodeInvalidValue, "must be " + meaning
	}}
}

// Lengths and patterns of D1's members. D1 documents those of cardId; the
// others are this service's own bounds, wide enough for all samples of D1.
var (
	cardID          = id(48)
	consumerID      = id(64)
	cardProductID   = id(48)
	issuerRequestID = id(64)
	operationID     = id(64)
	agreedID        = id(64) // something both sides agreed on at onboarding
	addressText     = text(64)
	personName      = textRule{check: addressText.check, free: true, name: true}
	printedLine     = text(128)
	countryCode     = code(countries, "an ISO 3166-1 alpha-2 country code in capitals")
	language        = code(languages, "an ISO 639-1 language code in small letters")
	phoneNumber     = textRule{check: checkPhone, free: true}
	metadataValue   = text(256)
	overrideReason  = text(256)
	canonicalUUID   = textRule{check: checkUUID}
	instant         = textRule{check: checkInstant}
	idempotencyKey  = textRule{check: checkIdempotencyKey}
	encryptedData   = textRule{check: checkCompactJWE}
	memberName      = textRule{check: checkMemberName, free: true}

	channel      = oneOf(Channels...)
	issuance     = oneOf(IssuanceCreation, IssuanceRenewal, IssuanceReplacement)
	shipmentType = oneOf(ShipmentIndividual, ShipmentBulk)
)

// checkPhone takes an international number and nothing else (ITU-T E.164): a
// plus sign and 7 to 15 digits, of which the first is no zero.
func checkPhone(s string) (string, string) {
	if len(s) < 8 || len(s) > 16 || s[0] != '+' || s[1] == '0' || strings.Trim(s[1:], "0123456789") != "" {
		return CodeInvalidFormat, "must be an international phone number: + and 7 to 15 digits"
	}
	return "", ""
}

// checkUUID takes a UUID as this service writes it.
func checkUUID(s string) (string, string) {
	ok := len(s) == uuidLength
	for i := 0; ok && i < len(s); i++ {
		if i == 8 || i == 13 || i == 18 || i == 23 {
			ok = s[i] == '-'
		} else {
			ok = isDigit(s[i]) || s[i] >= 'a' && s[i] <= 'f'
		}
	}
	if !ok {
		return CodeInvalidFormat, "must be a UUID in small letters"
	}
	return "", ""
}

// checkInstant takes a time as RFC 3339 writes it.
func checkInstant(s string) (string, string) {
	var t time.Time
	if t.UnmarshalText([]byte(s)) != nil {
		return CodeInvalidFormat, "must be a time such as 2026-01-31T08:00:00Z"
	}
	return "", ""
}

// MaxEncryptedData is the longest JWE taken, in characters.
const MaxEncryptedData = 8192

// checkCompactJWE looks at the form only: base64url in parts (RFC 7516).
func checkCompactJWE(s string) (string, string) {
	switch {
	case len(s) > MaxEncryptedData:
		return CodeTooLong, fmt.Sprintf("is longer than %d characters", MaxEncryptedData)
	case strings.Count(s, ".") != 4 || !isID(s, '.'):
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

func checkIdempotencyKey(s string) (string, string) {
	if detail := IdempotencyKey(s); detail != "" {
		return CodeInvalidFormat, detail
	}
	return "", ""
}

// checkMemberName is for names that the caller may choose.
func checkMemberName(s string) (string, string) {
	if s == "" || len(s) > 64 || !isID(s, '.') {
		return CodeInvalidFormat, "must be 1 to 64 characters of A-Z a-z 0-9 . _ -"
	}
	return "", ""
}

// KnownCountry tells whether code is a country's of ISO 3166-1 alpha-2, in capitals.
func KnownCountry(code string) bool {
	bad, _ := countryCode.check(code)
	return bad == ""
}

// countries are the officially assigned codes of ISO 3166-1 alpha-2 (ISO Online
// Browsing Platform). Codes that others use, like XK, are not among them.
const countries = `
AD AE AF AG AI AL AM AO AQ AR AS AT AU AW AX AZ BA BB BD BE BF BG BH BI BJ BL BM BN BO BQ BR BS BT BV BW BY BZ
CA CC CD CF CG CH CI CK CL CM CN CO CR CU CV CW CX CY CZ DE DJ DK DM DO DZ EC EE EG EH ER ES ET FI FJ FK FM FO FR
GA GB GD GE GF GG GH GI GL GM GN GP GQ GR GS GT GU GW GY HK HM HN HR HT HU ID IE IL IM IN IO IQ IR IS IT JE JM JO JP
KE KG KH KI KM KN KP KR KW KY KZ LA LB LC LI LK LR LS LT LU LV LY MA MC MD ME MF MG MH MK ML MM MN MO MP MQ MR MS MT
MU MV MW MX MY MZ NA NC NE NF NG NI NL NO NP NR NU NZ OM PA PE PF PG PH PK PL PM PN PR PS PT PW PY QA RE RO RS RU RW
SA SB SC SD SE SG SH SI SJ SK SL SM SN SO SR SS ST SV SX SY SZ TC TD TF TG TH TJ TK TL TM TN TO TR TT TV TW TZ
UA UG UM US UY UZ VA VC VE VG VI VN VU WF WS YE YT ZA ZM ZW`

// languages are the codes of ISO 639-1 (Library of Congress, registration
// authority of ISO 639-2) without those that were withdrawn, like bh and sh.
const languages = `
aa ab ae af ak am an ar as av ay az ba be bg bi bm bn bo br bs ca ce ch co cr cs cu cv cy da de dv dz ee el en eo es
et eu fa ff fi fj fo fr fy ga gd gl gn gu gv ha he hi ho hr ht hu hy hz ia id ie ig ii ik io is it iu ja jv ka kg ki
kj kk kl km kn ko kr ks ku kv kw ky la lb lg li ln lo lt lu lv mg mh mi mk ml mn mr ms mt my na nb nd ne ng nl nn no
nr nv ny oc oj om or os pa pi pl ps pt qu rm rn ro ru rw sa sc sd se sg si sk sl sm sn so sq sr ss st su sv sw ta te
tg th ti tk tl tn to tr ts tt tw ty ug uk ur uz ve vi vo wa wo xh yi yo za zh zu`
