package d1client

import (
	"regexp"
	"strings"
)

const maxErrorText = 200

// errorWord is a piece of D1's free text: a word, or the path of a member.
var errorWord = regexp.MustCompile(`[A-Za-z][A-Za-z0-9_]*(?:\[[0-9]{1,2}\])?(?:\.[A-Za-z][A-Za-z0-9_]*(?:\[[0-9]{1,2}\])?)*`)

// listIndex is the place in a list that a path names.
var listIndex = regexp.MustCompile(`\[[0-9]{1,2}\]`)

// safeErrorText keeps of D1's free text what cannot be data: the names of D1's
// members, with their path, and a vocabulary of technical words. Everything else
// may be a quoted value, as a name or a street, and becomes one ellipsis. D1's
// texts are not stable, so nothing depends on them; they help a person to see
// which field is meant.
func safeErrorText(text string) string {
	var b strings.Builder
	dropped, end := false, 0
	add := func(s string) {
		if b.Len() > 0 {
			s = " " + s
		}
		if b.Len()+len(s) <= maxErrorText {
			b.WriteString(s)
		}
	}
	drop := func() {
		if !dropped {
			add("...")
		}
		dropped = true
	}
	for _, at := range errorWord.FindAllStringIndex(text, -1) {
		if strings.ContainsFunc(text[end:at[0]], isContent) {
			drop()
		}
		end = at[1]
		if word := text[at[0]:end]; isSafeWord(word) {
			add(word)
			dropped = false
		} else {
			drop()
		}
	}
	if strings.ContainsFunc(text[end:], isContent) {
		drop()
	}
	return b.String()
}

// isContent tells whether a rune between words is more than punctuation.
func isContent(r rune) bool { return r >= '0' && r <= '9' || r > '~' }

func isSafeWord(word string) bool {
	parts := strings.Split(listIndex.ReplaceAllString(word, ""), ".")
	for _, part := range parts {
		if !memberNames[part] && (len(parts) > 1 || !errorVocabulary[part]) {
			return false
		}
	}
	return true
}

func words(text string) map[string]bool {
	set := make(map[string]bool)
	for word := range strings.FieldsSeq(text) {
		set[word] = true
	}
	return set
}

// memberNames are the members of D1's requests that a text may name.
var memberNames = words(`cardId issuerId consumerId cardProductId issuerRequestId distributionChannel services issuance
	priority delivery cardCarrier packaging pinMailer alphaCard paymentApplication config odaKeyIndex
	derivationKeyIndex cvKeyIndex pvKeyIndex encryptedData cardDesign cardImage images customLines memberId
	cardCarrierConfig language packagingConfig inserts shipment type deliveryAddress individualAddress groupId
	orderId persoStation state oldCardId title firstName lastName companyName line1 line2 line3 zipCode city
	countryCode mobilePhoneNumber pan exp name secondName encodedName cvv1 cvv2 pvv paymentAccountReference
	effectiveDate panSequenceNumber trackData track1 track2 track3 operationId kid alg enc epk`)

// errorVocabulary are words that say what is wrong and never to whom.
var errorVocabulary = words(`a an the is are was be been not no of for in on to with by at or and this that it its
	must should cannot could has have had bad wrong invalid valid missing required unknown unexpected unsupported
	malformed empty null duplicate expired exceeded allowed forbidden denied refused rejected failed failure error
	exception found exist exists already long short large small characters length size maximum minimum max min
	format pattern regex value values field fields parameter parameters property member attribute body header path
	query request response json jwe jws jwt schema syntax parse parsing parsed decode decrypt decrypted decryption
	encrypted encryption key keys signature certificate token authorization authentication unauthorized card cards
	product consumer issuer operation order production shipment address country code date string number integer
	boolean object array list internal server service unavailable timeout limit rate too many try again later`)
