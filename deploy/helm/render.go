// Renders the chart in pulsegate/ as `helm template` does, where there is no helm: with the engine and the functions that helm has (Go's
// text/template and sprig), and those of helm's own that the chart uses. It knows no dependencies, hooks, lookup or tpl.
//
//	GO111MODULE=off GOPATH=/usr/share/gocode go run deploy/helm/render.go CHART RELEASE [VALUES...]
package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"text/template"

	"github.com/Masterminds/sprig"
	"sigs.k8s.io/yaml"
)

func main() {
	if len(os.Args) < 3 {
		fail(fmt.Errorf("usage: render CHART RELEASE [VALUES...]"))
	}
	chart, release := os.Args[1], os.Args[2]
	values := read(filepath.Join(chart, "values.yaml"))
	for _, file := range os.Args[3:] {
		values = merge(values, read(file))
	}
	about := read(filepath.Join(chart, "Chart.yaml"))
	data := map[string]interface{}{
		"Values":  values,
		"Chart":   map[string]interface{}{"Name": about["name"], "Version": about["version"], "AppVersion": about["appVersion"]},
		"Release": map[string]interface{}{"Name": release, "Namespace": "default", "Service": "Helm", "IsInstall": true},
	}
	files, err := filepath.Glob(filepath.Join(chart, "templates", "*"))
	fail(err)
	sort.Strings(files)
	// As helm: what is not there is empty, not an error.
	engine := template.New("chart").Option("missingkey=zero")
	functions := sprig.TxtFuncMap()
	delete(functions, "env")
	delete(functions, "expandenv")
	functions["toYaml"] = func(value interface{}) (string, error) {
		text, err := yaml.Marshal(value)
		return strings.TrimSuffix(string(text), "\n"), err
	}
	functions["include"] = func(name string, data interface{}) (string, error) {
		var out bytes.Buffer
		err := engine.ExecuteTemplate(&out, name, data)
		return out.String(), err
	}
	functions["required"] = func(why string, value interface{}) (interface{}, error) {
		if value == nil || value == "" {
			return nil, fmt.Errorf("%s", why)
		}
		return value, nil
	}
	engine.Funcs(functions)
	for _, file := range files {
		text, err := os.ReadFile(file)
		fail(err)
		_, err = engine.New(file).Parse(string(text))
		fail(err)
	}
	for _, file := range files {
		if strings.HasPrefix(filepath.Base(file), "_") || !strings.HasSuffix(file, ".yaml") {
			continue
		}
		var out bytes.Buffer
		fail(engine.ExecuteTemplate(&out, file, data))
		text := strings.ReplaceAll(out.String(), "<no value>", "")
		if strings.TrimSpace(text) != "" {
			fmt.Printf("---\n# Source: %s\n%s\n", file, strings.TrimRight(text, "\n"))
		}
	}
}

func read(file string) map[string]interface{} {
	text, err := os.ReadFile(file)
	fail(err)
	values := map[string]interface{}{}
	if err := yaml.UnmarshalStrict(text, &values); err != nil {
		fail(fmt.Errorf("%s: %w", file, err))
	}
	return values
}

// Maps are merged, anything else takes the place of what was there; null takes it away.
func merge(into, from map[string]interface{}) map[string]interface{} {
	for key, value := range from {
		before, isMap := into[key].(map[string]interface{})
		after, andSoIs := value.(map[string]interface{})
		switch {
		case value == nil:
			delete(into, key)
		case isMap && andSoIs:
			into[key] = merge(before, after)
		default:
			into[key] = value
		}
	}
	return into
}

func fail(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "render:", err)
		os.Exit(1)
	}
}
