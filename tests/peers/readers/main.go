// Reads an environment file by the parser of docker or of compose, and prints what it found as JSON.
package main

import (
	"encoding/json"
	"log"
	"os"
	"strings"

	"github.com/compose-spec/compose-go/v2/dotenv"
	"github.com/docker/cli/pkg/kvfile"
)

func main() {
	found := map[string]string{}
	var err error
	switch parser, file := os.Args[1], os.Args[2]; parser {
	case "compose":
		found, err = dotenv.Read(file)
	case "docker":
		var lines []string
		lines, err = kvfile.Parse(file, os.LookupEnv)
		for _, line := range lines {
			name, value, _ := strings.Cut(line, "=")
			found[name] = value
		}
	}
	if err != nil {
		log.Fatal(err)
	}
	if err := json.NewEncoder(os.Stdout).Encode(found); err != nil {
		log.Fatal(err)
	}
}
