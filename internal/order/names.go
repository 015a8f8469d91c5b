package order

import "regexp"

// NameRule says which names can be printed. The zero value is the default:
// letters, digits, space and . ' - /, at most 26 characters.
type NameRule struct {
	// Character matches a single character that may stand in a name; nil means
	// the default.
	Character *regexp.Regexp
	Length    int // in characters; 0 means 26
}
