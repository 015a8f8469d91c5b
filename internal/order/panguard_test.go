package order_test

import (
	"encoding/binary"
	"math/rand/v2"
	"strings"
	"testing"
	"unicode"

	"cardorder/internal/order"

	"github.com/google/uuid"
	"pgregory.net/rapid"
)

// publishedPANs are the test numbers that the schemes and acquirers publish.
var publishedPANs = []string{
	"4111111111111111", "4012888888881881", "4222222222222", // Visa, 16 and 13 digits
	"5555555555554444", "5105105105105100", "2223003122003222", // Mastercard
	"378282246310005", "371449635398431", // American Express
	"30569309025904", "36227206271667", "38520000023237", // Diners Club
	"6011111111111117", "6011000990139424", // Discover
	"3530111333300000", "3566002020360505", // JCB
	"6240008631401148", "6205500000000000004", // UnionPay, 16 and 19 digits
	"2201382000000013",    // Mir
	"5019717010103742",    // Dankort
	"6759649826438453",    // Maestro
	"6304000000000000000", // Maestro, 19 digits
}

func TestFindsPublishedCardNumbersInFreeText(t *testing.T) {
	t.Parallel()
	for _, pan := range publishedPANs {
		for _, text := range []string{
			pan, " " + pan + " ", "card " + pan, "card:" + pan + ".", "(" + pan + ")", "\"" + pan + "\"", "a\n" + pan + "\tb",
			";" + pan + "=3012", "_" + pan + "_", "é " + pan + " é", "№" + pan, "PAN=" + pan + ",exp=1230",
			pan[:4] + " " + pan[4:8] + " " + pan[8:12] + " " + pan[12:],
			pan[:4] + "-" + pan[4:8] + "-" + pan[8:12] + "-" + pan[12:],
			pan[:4] + " " + pan[4:10] + "-" + pan[10:],
			strings.Join(strings.Split(pan, ""), " "),
			"12 " + pan, pan + " 12", "12-" + pan + "-34", "1 2 3 " + pan, // beside other numbers
			"5B " + pan, "B5 " + pan, pan + " 5B", pan + "-5b", "flat B2-" + pan + "-12a", // beside numbers with letters
			"\xff" + pan + "\xff", // invalid UTF-8 is no letter
			pan[:4] + "\u00a0" + pan[4:8] + "\u202f" + pan[8:12] + "\u2011" + pan[12:], // as word processors space
			"550e8400-e29b-41d4-a716-446655440000 " + pan, pan + "-550e8400-e29b-41d4-a716-446655440000",
			"+49 1511 2345678 " + pan, "9101 0268 3733 1000 0395 21 " + pan,
		} {
			if !guard.Finds(text, true) {
				t.Errorf("not found in %q", text)
			}
		}
	}
}

// In a field that machines write only the issuer's own numbers count: Luhn and
// a scheme's prefix fit too many ids by chance.
func TestFindsTheIssuersCardNumbersEverywhere(t *testing.T) {
	t.Parallel()
	for _, pan := range []string{issuerPAN, "9911112200000" + check("9911112200000"), "990000000000000000" + check("990000000000000000")} {
		for _, free := range []bool{false, true} {
			for _, text := range []string{pan, "card-" + pan, "a_" + pan + "_b", pan[:6] + " " + pan[6:], pan[:4] + "-" + pan[4:], "+" + pan} {
				if !guard.Finds(text, free) {
					t.Errorf("not found in %q, free %t", text, free)
				}
			}
			if (order.PANGuard{}).Finds(pan, free) {
				t.Errorf("%s is nobody's card number, yet found without the issuer's BINs", pan)
			}
		}
	}
	// Nor does a form hide them that says they are something else.
	for _, text := range []string{"99000012-3456-7899-8abc-0123456789ab", "+9900001234568", "9400 9900 0012 3456 7899 04"} {
		for _, free := range []bool{false, true} {
			if !guard.Finds(text, free) {
				t.Errorf("not found in %q, free %t", text, free)
			}
		}
	}
	for _, pan := range publishedPANs {
		if guard.Finds(pan, false) {
			t.Errorf("%s is not the issuer's", pan)
		}
	}
}

func TestFindsNothing(t *testing.T) {
	t.Parallel()
	for _, text := range []string{
		"99000012345" + check("99000012345"),                 // the issuer's, but 12 digits
		"9900001234567890123" + check("9900001234567890123"), // the issuer's, but 20 digits
		"", " ", "-", "4", "4111", "no digits at all", "\xff",
		"4111111111111112",                       // Luhn
		"9900001234567898",                       // Luhn
		"411111111112",                           // 12 digits
		"41111111111111111111",                   // 20 digits
		"4111111111111111111111111111",           // more
		"x4111111111111111", "4111111111111111x", // part of a word
		"é4111111111111111", "4111111111111111ß", "٣4111111111111111",
		"a4111-1111-1111-1111", "4111-1111-1111-1111a",
		"4111  1111  1111  1111", "4111 - 1111 - 1111 - 1111", // two characters between digits
		"4111.1111.1111.1111", "4111/1111/1111/1111", "4111\n1111\n1111\n1111",
		"8111111111111111", "0000000000000000", "1111111111111117", // no scheme's prefix
		"550e8400-e29b-41d4-a716-446655440000", "1Z999AA10123456784", "2026-11-23T22:15:39.123456Z",
		"+4915112345678", "+49 1511 2345678", "+49-1511-2345678", // Luhn and Visa's prefix, but a phone number
		"+43 4222222222222",                    // a country code, and 13 digits that look like a Visa card
		"41111111-1111-1111-8abc-0123456789ab", // Luhn and Visa's prefix, but a UUID
		"req_41111111-1111-1111-8ABC-0123456789AB.", "0b5f16c0-75aa-4eb9-4111-111111111111",
		"9101 0268 3733 1000 0395 21", "9400 4111 1111 1111 1111 08", // Visa, but the post's form and check digit
		"\u00a04111\u00a0\u00a01111\u00a01111 1111",
	} {
		if guard.Finds(text, true) {
			t.Errorf("false alarm at %q", text)
		}
	}
	// What has such a form, but not quite.
	for _, text := range []string{
		"41111111-1111-1111-8111-111111111111",   // no letter
		"41111111-1111-1111-8abc-0123456789a",    // too short
		"41111111-1111-1111-8abc-0123456789abc",  // too long
		"41111111-1111-1111-8abc-0123456789ag",   // not hexadecimal
		"41111111 1111 1111-8abc-0123456789ab",   // no UUID
		"x-41111111-1111-1111 8abc-0123456789ab", // no UUID
		"9400 4111 1111 1111 1111 05",            // another check digit
		"9600 4111 1111 1111 1111 06",            // another prefix
		"94 4111 1111 1111 1111 08",
	} {
		if !guard.Finds(text, true) {
			t.Errorf("not found in %q", text)
		}
	}
	// With no plus sign nothing tells this phone number from a card number.
	if !guard.Finds("4915112345678", true) {
		t.Error("13 digits of a Visa card are no longer found")
	}
	// A plus sign hides nothing that is too long for a phone number.
	if !guard.Finds("+4111 1111 1111 1111", true) {
		t.Error("a plus sign hides a card number")
	}
}

// check is the digit that makes a number pass Luhn.
func check(number string) string {
	sum := 0
	for i := range len(number) {
		d := int(number[len(number)-1-i] - '0')
		if i%2 == 0 {
			d = d*2%10 + d*2/10
		}
		sum += d
	}
	return string(rune('0' + (10-sum%10)%10))
}

// The issuer's own numbers are found between any two texts, however their digits
// are spaced, as long as nothing touches them: in a UUID, a phone number and a
// tracking number too.
func TestFindsWhateverStandsBeside(t *testing.T) {
	t.Parallel()
	bins := make([]string, len(publishedPANs))
	for i, pan := range publishedPANs {
		bins[i] = pan[:6+i%3]
	}
	published := order.PANGuard{BINs: bins}
	beside := rapid.StringOf(rapid.OneOf(rapid.RuneFrom([]rune("0123456789 -+aZé.")), rapid.Rune()))
	border := rapid.OneOf(rapid.RuneFrom([]rune(" -+.,;:/_=#()\n\u00a0")), rapid.Rune().Filter(func(r rune) bool {
		return !unicode.IsLetter(r) && !unicode.IsDigit(r)
	}))
	rapid.Check(t, func(t *rapid.T) {
		number := rapid.OneOf(
			rapid.SampledFrom(publishedPANs),
			rapid.Map(rapid.StringMatching(`(411111[0-9]{6,12}|555555[0-9]{6,12})`), func(s string) string { return s + check(s) }),
		).Draw(t, "number")
		var spaced strings.Builder
		for i, digit := range number {
			if i > 0 {
				spaced.WriteString(rapid.SampledFrom([]string{"", "", " ", "-", "\u00a0", "\u2013"}).Draw(t, "separator"))
			}
			spaced.WriteRune(digit)
		}
		text := spaced.String()
		if rapid.Bool().Draw(t, "something before") {
			text = beside.Draw(t, "before") + string(border.Draw(t, "border")) + text
		}
		if rapid.Bool().Draw(t, "something after") {
			text += string(border.Draw(t, "border")) + beside.Draw(t, "after")
		}
		for _, free := range []bool{false, true} {
			if !published.Finds(text, free) {
				t.Errorf("not found in %q, free %t", text, free)
			}
		}
	})
}

// What the bank's systems write every day is no card number, in ids and where
// people write. The numbers are random, and the same in each run.
//
// In free text nothing tells a number of 13 to 19 digits that begins like a card
// and passes Luhn from a card number: it is refused. Of the carriers that is one
// in some hundred of FedEx's with 15 digits and Canada Post's with 16; in fields
// of their own (ids) those pass.
func TestNoFalseAlarms(t *testing.T) {
	t.Parallel()
	n := 1_000_000
	if testing.Short() {
		n = 100_000
	}
	for _, c := range []struct {
		name string
		free bool
		make func(*rand.Rand) string
	}{
		{"random UUIDs", true, func(r *rand.Rand) string { return randomUUID(r, 4) }},
		{"UUIDs by time", true, func(r *rand.Rand) string { return "order " + randomUUID(r, 7) }},
		{"phone numbers", true, phone},
		{"tracking numbers", true, func(r *rand.Rand) string {
			return []func(*rand.Rand) string{ups, postal, dhl, usps, dpd, swissPost, fedEx}[r.IntN(7)](r)
		}},
		{"tracking numbers as ids", false, func(r *rand.Rand) string {
			return []func(*rand.Rand) string{ups, postal, dhl, usps, dpd, swissPost, fedEx, fedExGround, canadaPost}[r.IntN(9)](r)
		}},
		{"numeric ids", false, func(r *rand.Rand) string {
			id := digits(r, 13+r.IntN(7))
			for strings.HasPrefix(id, guard.BINs[0]) || strings.HasPrefix(id, guard.BINs[1]) {
				id = digits(r, 16)
			}
			return id
		}},
		{"numeric ids that no scheme begins like", true, func(r *rand.Rand) string {
			return "ref " + string("0178"[r.IntN(4)]) + digits(r, 12+r.IntN(7)) + "."
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := rand.New(rand.NewPCG(1, 2))
			for range n {
				if text := c.make(r); guard.Finds(text, c.free) {
					t.Errorf("false alarm at %q", text)
				}
			}
		})
	}
}

func digits(r *rand.Rand, n int) string {
	var b [32]byte
	for i := range n {
		b[i] = byte('0' + r.IntN(10))
	}
	return string(b[:n])
}

func randomUUID(r *rand.Rand, version byte) string {
	var id uuid.UUID
	binary.BigEndian.PutUint64(id[:8], r.Uint64())
	binary.BigEndian.PutUint64(id[8:], r.Uint64())
	if version == 7 {
		binary.BigEndian.PutUint64(id[:8], 0x0190_0000_0000_0000|r.Uint64()>>16)
	}
	id[6], id[8] = id[6]&0x0f|version<<4, id[8]&0x3f|0x80
	return id.String()
}

// phone is an international number as people write it; the longest have 15 digits.
func phone(r *rand.Rand) string {
	country := []struct {
		code           string
		operator, rest int
	}{
		{"1", 3, 7}, {"33", 1, 8}, {"34", 3, 6}, {"41", 2, 7}, {"43", 3, 10}, {"44", 4, 6}, {"49", 3, 7}, {"49", 4, 7},
		{"62", 3, 8}, {"351", 2, 7}, {"353", 2, 7}, {"358", 2, 8}, {"52", 2, 8}, {"86", 3, 8}, {"7", 3, 7},
	}[r.IntN(15)]
	space := []string{"", " ", "-"}[r.IntN(3)]
	return "+" + country.code + space + digits(r, country.operator) + space + digits(r, country.rest)
}

func ups(r *rand.Rand) string { return "1Z" + digits(r, 16) }

// postal is the world's posts' (UPU S10).
func postal(r *rand.Rand) string {
	return "RR" + digits(r, 9) + []string{"CH", "DE", "FR", "GB", "SG"}[r.IntN(5)]
}

func dhl(r *rand.Rand) string {
	switch r.IntN(3) {
	case 0:
		return digits(r, 10)
	case 1:
		return "00340434" + digits(r, 12)
	}
	return "0034 0434 " + digits(r, 4) + " " + digits(r, 4) + " " + digits(r, 4)
}

func usps(r *rand.Rand) string {
	number := "9" + string("12345"[r.IntN(5)]) + digits(r, 19)
	sum := 0
	for i := range len(number) {
		sum += int(number[i]-'0') * (1 + 2*(i%2^1)) // the odd ones from the right, less the check digit, count three times
	}
	number += string(rune('0' + (10-sum%10)%10))
	if r.IntN(2) == 0 {
		return number
	}
	return number[:4] + " " + number[4:8] + " " + number[8:12] + " " + number[12:16] + " " + number[16:20] + " " + number[20:]
}

func dpd(r *rand.Rand) string { return "0" + digits(r, 13) }

func swissPost(r *rand.Rand) string { return "99.00." + digits(r, 6) + "." + digits(r, 8) }

func fedEx(r *rand.Rand) string {
	switch r.IntN(3) {
	case 0:
		return digits(r, 12)
	case 1:
		return digits(r, 4) + " " + digits(r, 4) + " " + digits(r, 4)
	}
	return "96" + digits(r, 20)
}

func fedExGround(r *rand.Rand) string { return digits(r, 15) }

func canadaPost(r *rand.Rand) string { return digits(r, 16) }
