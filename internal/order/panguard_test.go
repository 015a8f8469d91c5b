package order_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"cardorder/internal/order"

	"github.com/google/uuid"
	"pgregory.net/rapid"
)

// publishedPANs are the test numbers that the schemes and acquirers publish.
var publishedPANs = []string{
	"4111111111111111", "4012888888881881", "4222222222222", // Visa, 16 and 13 digits
	"5555555555554444", "5105105105105100", "2223003122003222", // Mastercard
	"378282246310005", "371449635398431", // American Express
	"30569309025904", "36227206271667", // Diners Club
	"6011111111111117", "6011000990139424", // Discover
	"3530111333300000", "3566002020360505", // JCB
	"6240008631401148",    // UnionPay
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
	} {
		if guard.Finds(text, true) {
			t.Errorf("false alarm at %q", text)
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

// A card number between any two texts is found, however its digits are spaced,
// as long as nothing touches it.
func TestFindsWhateverStandsBeside(t *testing.T) {
	t.Parallel()
	beside := rapid.StringOf(rapid.OneOf(rapid.RuneFrom([]rune("0123456789 -+aZé.")), rapid.Rune()))
	rapid.Check(t, func(t *rapid.T) {
		number := rapid.StringMatching(`(990000[0-9]{6,12}|99111122[0-9]{4,10})`).Draw(t, "number")
		number += check(number)
		var spaced strings.Builder
		for i, digit := range number {
			if i > 0 {
				spaced.WriteString(rapid.SampledFrom([]string{"", "", " ", "-"}).Draw(t, "separator"))
			}
			spaced.WriteRune(digit)
		}
		text := beside.Draw(t, "before") + " " + spaced.String() + " " + beside.Draw(t, "after")
		for _, free := range []bool{false, true} {
			if !guard.Finds(text, free) {
				t.Errorf("not found in %q, free %t", text, free)
			}
		}
	})
}

// What the bank's systems write every day is no card number. The numbers are
// random, and the same in each run.
func TestNoFalseAlarms(t *testing.T) {
	t.Parallel()
	n := 1_000_000
	if testing.Short() {
		n = 100_000
	}
	digits := func(r *rand.Rand, n int) string {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte('0' + r.IntN(10))
		}
		return string(b)
	}
	for name, c := range map[string]struct {
		free bool
		make func(*rand.Rand) string
	}{
		"UUIDs": {false, func(r *rand.Rand) string {
			var id uuid.UUID
			for i := range id {
				id[i] = byte(r.Uint32())
			}
			id[6], id[8] = id[6]&0x0f|0x40, id[8]&0x3f|0x80
			return id.String()
		}},
		"phone numbers": {true, func(r *rand.Rand) string {
			country := []struct{ code, operator, rest int }{
				{1, 3, 7}, {33, 1, 8}, {34, 3, 6}, {41, 2, 7}, {43, 3, 8}, {44, 4, 6}, {49, 3, 7}, {49, 4, 7},
				{62, 3, 8}, {351, 2, 7}, {353, 2, 7}, {358, 2, 8}, {5255, 4, 4},
			}[r.IntN(13)]
			space := []string{"", " ", "-"}[r.IntN(3)]
			return fmt.Sprintf("+%d", country.code) + space + digits(r, country.operator) + space + digits(r, country.rest)
		}},
		"tracking numbers": {false, func(r *rand.Rand) string {
			switch r.IntN(5) {
			case 0: // UPS
				return "1Z" + digits(r, 16)
			case 1: // UPU S10
				return "RR" + digits(r, 9) + "CH"
			case 2: // DHL
				return "00340" + digits(r, 15)
			case 3: // Swiss Post
				return "99.00." + digits(r, 6) + "." + digits(r, 8)
			}
			return "9400 1" + digits(r, 3) + " " + digits(r, 4) + " " + digits(r, 4) + " " + digits(r, 4) + " " + digits(r, 2)
		}},
		"numeric ids": {false, func(r *rand.Rand) string {
			id := digits(r, 13+r.IntN(7))
			for strings.HasPrefix(id, guard.BINs[0]) || strings.HasPrefix(id, guard.BINs[1]) {
				id = digits(r, 16)
			}
			return id
		}},
	} {
		t.Run(name, func(t *testing.T) {
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
